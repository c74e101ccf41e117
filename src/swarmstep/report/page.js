// Starts the page: the button for light and dark, the edges of wide tables, and the plots.

function themeButton(button) {
  const dark = () => (document.documentElement.dataset.theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = dark() ? "Light" : "Dark"; };
  button.setAttribute("aria-label", "Switch between light and dark");
  button.hidden = false;
  button.addEventListener("click", () => { document.documentElement.dataset.theme = dark() ? "light" : "dark"; name(); });
  name();
}

// A shadow at each edge behind which there is more.
function edges(box) {
  const update = () => {
    box.parentElement.classList.toggle("more-left", box.scrollLeft > 1);
    box.parentElement.classList.toggle("more-right", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  };
  box.addEventListener("scroll", update, { passive: true });
  new ResizeObserver(update).observe(box);
  update();
}

themeButton(document.getElementById("theme"));
document.querySelectorAll(".scroll").forEach(edges);
document.querySelectorAll("figure[data-plot]").forEach((figure) => new Plot(figure));
