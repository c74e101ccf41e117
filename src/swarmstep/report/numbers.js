"use strict";
// Formats numbers and places ticks.

const UNITS = {
  bytes: [[1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]],
  seconds: [[3600, "h"], [60, "min"], [1, "s"], [1e-3, "ms"]],
};

function unitOf(kind, size) {
  const units = UNITS[kind] ?? [[1, ""]];
  return units.find(([factor]) => size >= factor) ?? units.at(-1);
}

function format(kind, value) {
  if (value === null) return "\u2013";
  if (kind === "accuracy" || kind === "loss") return value.toFixed(4);
  if (kind === "seconds" && value >= 60) {
    const [size, big, small] = value < 3600 ? [1, "min", "s"] : [60, "h", "min"];
    const rest = Math.round(value / size) % 60;
    return `${Math.floor(Math.round(value / size) / 60)} ${big}${rest ? ` ${rest} ${small}` : ""}`;
  }
  const [factor, unit] = unitOf(kind, value);
  return unit ? `${+(value / factor).toPrecision(3)} ${unit}` : value.toLocaleString("en");
}

function ticksOf(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].find((factor) => factor * power >= rough) * power;
  const first = Math.ceil(low / step - 1e-9);
  return Array.from({ length: Math.floor(high / step + 1e-9) - first + 1 }, (_, i) => +((first + i) * step).toPrecision(12));
}

// 1, 2, 5, 10 ... for a logarithmic axis; seconds continue with whole minutes and hours.
function logTicksOf(low, high, kind) {
  const powers = [];
  for (let power = -6; power < 16; power++) powers.push(...[1, 2, 5].map((factor) => +`${factor}e${power}`));
  const clock = [60, 120, 300, 600, 1800, 3600, 7200, 18000, 43200, 86400, 172800, 604800];
  const all = kind === "seconds" ? [...powers.filter((tick) => tick < 50), ...clock] : powers;
  return all.filter((tick) => tick >= low && tick <= high);
}

