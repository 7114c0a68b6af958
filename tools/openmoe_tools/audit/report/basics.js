// Errors are kept where a test, or a reader who reports one, finds them.
document.body.dataset.errors = "";
function complain(message) {
  document.body.dataset.errors += `${message}\n`;
}
window.addEventListener("error", (event) => complain(event.message));
document.addEventListener("securitypolicyviolation", (event) => complain(event.violatedDirective));

// ---- elements ----------------------------------------------------------------------------------

// The namespace of SVG, without its address in this file.
const holder = document.createElement("div");
holder.innerHTML = "<svg></svg>";
const SPACE = holder.firstChild.namespaceURI;

// Text goes in as text nodes and attributes by setAttribute: what strangers wrote is never read as HTML.
function furnish(node, attributes, inside) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value);
  }
  node.append(...inside);
  return node;
}
const make = (tag, attributes = {}, ...inside) => furnish(document.createElement(tag), attributes, inside);
const draw = (tag, attributes = {}, ...inside) =>
  furnish(document.createElementNS(SPACE, tag), attributes, inside);

// ---- text and numbers --------------------------------------------------------------------------

const UNKNOWN = "not known";

// Characters that are not seen are spelt out; joiners stay, which some scripts are written with.
function spelt(text) {
  const whole = String(text);
  const hidden = whole.length === 1 ? /[\p{C}\p{Zl}\p{Zp}]/gu : /(?![\u200c\u200d])[\p{C}\p{Zl}\p{Zp}]/gu;
  return whole.replace(hidden, (one) => {
    const code = one.codePointAt(0);
    if (one === "\n") return "\\n";
    if (code < 256) return `\\x${code.toString(16).padStart(2, "0")}`;
    return code < 65536
      ? `\\u${code.toString(16).padStart(4, "0")}`
      : `\\U${code.toString(16).padStart(8, "0")}`;
  });
}

const known = (value) => typeof value === "number";
const px = (value) => Math.round(value * 10) / 10;

function number(value, digits = 4) {
  if (value === null || value === undefined) return UNKNOWN;
  if (!known(value)) return spelt(value);
  const size = Math.abs(value);
  if (Number.isInteger(value)) return value.toLocaleString("en-GB");
  if (size >= 10 ** digits) return Math.round(value).toLocaleString("en-GB");
  if (size < 1e-4) return value.toExponential(digits - 1).replace(/\.?0*e/, "e");
  return value.toLocaleString("en-GB", { maximumSignificantDigits: digits });
}

// How wide text is, about: nothing is laid out before it is drawn.
function wide(text, size = 12) {
  let width = 0;
  for (const one of text) width += one > "\u2e7f" ? size : size * 0.57;
  return width;
}

function cut(text, room, size = 12) {
  const clean = spelt(text);
  if (wide(clean, size) <= room) return clean;
  let kept = [...clean];
  while (kept.length > 1 && wide(kept.join(""), size) > room - size) kept.pop();
  return `${kept.join("")}…`;
}

function extent(values) {
  let [low, high] = [Infinity, -Infinity];
  for (const one of values) {
    if (!known(one)) continue;
    if (one < low) low = one;
    if (one > high) high = one;
  }
  return low <= high ? [low, high] : null;
}

// ---- scales ------------------------------------------------------------------------------------

// A scale is a function from values to pixels; `ticks` are values worth a number.
function scale(low, high, from, to, { log = false, count = 5 } = {}) {
  const turn = log ? Math.log10 : (value) => value;
  const [a, b] = [turn(low), turn(high)];
  const place = (value) => from + (to - from) * (a === b ? 0.5 : (turn(value) - a) / (b - a));
  place.ticks = log ? decades(low, high, count) : steps(low, high, count);
  place.from = from;
  place.to = to;
  return place;
}

function steps(low, high, count) {
  if (!(high > low)) return [low];
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.999);
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high * (1 + 1e-9) + 1e-300; i += 1) {
    ticks.push(Number((i * step).toPrecision(12)));
  }
  return ticks;
}

function decades(low, high, count) {
  const [first, last] = [Math.floor(Math.log10(low)), Math.ceil(Math.log10(high))];
  const every = Math.max(1, Math.ceil((last - first) / count));
  const within = last - first <= 2 ? [1, 2, 5] : [1];
  const ticks = [];
  for (let power = first; power <= last; power += every) {
    for (const one of within) ticks.push(Number((one * 10 ** power).toPrecision(6)));
  }
  return ticks.filter((one) => one >= low * 0.999 && one <= high * 1.001);
}

function tick(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  return size < 1e-3 || size >= 1e7 ? value.toExponential().replace("+", "") : number(value);
}
