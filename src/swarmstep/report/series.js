// The series of the plots, from the JSON in #data. A method keeps its colour and marker everywhere, an n its dashes.

const DATA = JSON.parse(document.getElementById("data").textContent);
const COLOURS = 7;
const DASHES = ["", "7 4", "2 3.5", "11 4 2 4", "5 2 1 2", "16 5"];
// Paths around the origin with a radius of 4 units.
const MARKERS = [
  "M4 0A4 4 0 1 1-4 0A4 4 0 1 1 4 0Z", // circle
  "M-3.6-3.6H3.6V3.6H-3.6Z", // square
  "M0-4.8L4.4 3.4H-4.4Z", // triangle
  "M0-5L5 0L0 5L-5 0Z", // diamond
  "M0 4.8L4.4-3.4H-4.4Z", // inverted triangle
  "M-4-4L4 4M-4 4L4-4", // cross
  "M0-5V5M-5 0H5", // plus
  "M-2-4.4H2L4.8 0L2 4.4H-2L-4.8 0Z", // hexagon
];
const COLUMNS = { step: 0, bytes: 1, seconds: 2, accuracy: 3, loss: 4 }; // in a point of a curve
const NAMES = { step: "steps", bytes: "sent by a worker", seconds: "time", loss: "test loss" };

const quantityOf = (section, kind) => (kind === "accuracy" ? `test ${section.score}` : NAMES[kind]);

// Both return [{method, every, shown, points: [{x, y, low, high, lines}]}].
function seriesOfCurves(section, choice) {
  return section.curves.map(({ method, every, points, shown }) => ({
    method, every, shown,
    points: points.map((point) => {
      const [y, low, high] = point[COLUMNS[choice.y]];
      const lines = ["step", "bytes", "seconds"].filter((kind) => point[COLUMNS[kind]] !== null)
        .map((kind) => `${NAMES[kind]}: ${format(kind, point[COLUMNS[kind]])}`);
      return { x: point[COLUMNS[choice.x]], y, low, high, lines: [withInterval(section, choice.y, y, low, high), ...lines] };
    }),
  }));
}

function seriesOverN(section) {
  return Object.entries(section.by_n).map(([method, points]) => ({
    method, every: null, shown: true,
    points: points.map(([n, [y, low, high]]) => ({ x: n, y, low, high, lines: [withInterval(section, section.measure, y, low, high), `n = ${n}`] })),
  }));
}

function withInterval(section, kind, y, low, high) {
  const between = low === null ? "" : ` (${format(kind, low)} to ${format(kind, high)})`;
  return `${quantityOf(section, kind)}: ${format(kind, y)}${between}`;
}

function styleOf(series) {
  const method = DATA.methods.indexOf(series.method);
  const dash = series.every === null ? method : DATA.every.indexOf(series.every);
  return { colour: `var(--c${method % COLOURS})`, marker: MARKERS[method % MARKERS.length], dash: DASHES[dash % DASHES.length] };
}

const keyOf = (series) => JSON.stringify([series.method, series.every]);
const nameOf = (series) => series.method + (series.every === null ? "" : `, n = ${series.every}`);
const shortNameOf = ({ method, every }) => nameOf({ method: method.length > 18 ? `${method.slice(0, 17)}\u2026` : method, every });
const drawable = (point) => point.x !== null && point.y !== null;
