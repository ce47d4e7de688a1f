// How are numbers and elements written?

const NAMES = { dense: "dense", masked: "dense + mask", sparse: "truly sparse" };
const DASHES = { dense: "1 5", masked: "7 7", sparse: "" };
const SVG = "http://www.w3.org/2000/svg";

/** An HTML element. Children are elements or text, which is never read as HTML. */
function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** An SVG element. */
function drawn(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

const grouped = new Intl.NumberFormat("en-US", { maximumFractionDigits: 0 });
const count = (value) => grouped.format(value);

/** With so many significant digits, and no needless zeros. */
function significant(value, digits = 3) {
  if (value === 0 || !Number.isFinite(value)) return String(value);
  return Math.abs(value) >= 10 ** digits ? count(value) : String(Number(value.toPrecision(digits)));
}

const percent = (share, digits = 2) => `${(100 * share).toFixed(digits)}\u00a0%`;
const shareLabel = (share) => `${significant(100 * share, 3)}\u00a0%`;
const ratio = (value) => `${value.toFixed(2)}×`;

function scaled(value, units, factor, digits = 3) {
  let power = 0;
  while (power < units.length - 1 && Math.abs(value) >= factor ** (power + 1)) power += 1;
  return `${significant(value / factor ** power, digits)} ${units[power]}`.trim();
}

const bytes = (value) => scaled(value, ["B", "kB", "MB", "GB", "TB"], 1000);
const picojoules = (value) => scaled(value, ["pJ", "nJ", "µJ", "mJ", "J"], 1000);
const operations = (value) => scaled(value, ["", "k", "M", "G", "T", "P", "E"], 1000);

function duration(seconds) {
  if (seconds >= 120) return `${significant(seconds / 60)} min`;
  if (seconds >= 1) return `${significant(seconds)} s`;
  return seconds >= 1e-3 ? `${significant(seconds * 1e3)} ms` : `${significant(seconds * 1e6)} µs`;
}

const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

/** A colour of the style sheet, as it is now. */
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

/** [red, green, blue] of a colour written as #rrggbb. */
const channels = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
