// What plots over two axes share, and the two of them: lines and points.
//
// Each kind draws into an SVG element of a width, sets its height, and returns its marks: rows of places
// { x, y, w, h, lines } that pointer and arrow keys go through, `lines` making the text of a mark.

const GREY = { floor: "7 4", bound: "2 3", mean: "9 3 2 3" };
const DASHES = ["", "6 3", "2 2", "9 3 2 3", "12 4", "4 2 1 2", "1 3"];
const SHAPES = ["circle", "square", "up", "diamond", "down", "cross", "plus"];

// Colours repeat after 8 and marks after 7, so that no two of 56 series look alike without colour either.
const look = (place) => ({
  colour: `var(--s${place % 8})`,
  dash: DASHES[place % DASHES.length],
  shape: SHAPES[place % SHAPES.length],
});

function styled(all) {
  let data = 0;
  return all.map((one) => {
    if (one.style !== "data") return { ...one, colour: "var(--soft)", dash: GREY[one.style], shape: null };
    data += 1;
    return { ...one, ...look(data - 1) };
  });
}

function shape(kind, x, y, r, colour) {
  const [cx, cy] = [px(x), px(y)];
  const at = (...corners) => `M${corners.map(([a, b]) => `${px(x + a * r)} ${px(y + b * r)}`).join("L")}`;
  const solid = { fill: colour, class: "mark" };
  if (kind === "circle") return draw("circle", { cx, cy, r, ...solid });
  if (kind === "square")
    return draw("path", { d: `${at([-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9])}Z`, ...solid });
  if (kind === "up") return draw("path", { d: `${at([0, -1.2], [1.1, 0.8], [-1.1, 0.8])}Z`, ...solid });
  if (kind === "down") return draw("path", { d: `${at([0, 1.2], [1.1, -0.8], [-1.1, -0.8])}Z`, ...solid });
  if (kind === "diamond")
    return draw("path", { d: `${at([0, -1.3], [1.3, 0], [0, 1.3], [-1.3, 0])}Z`, ...solid });
  const open =
    kind === "cross"
      ? at([-1, -1], [1, 1]) + at([-1, 1], [1, -1])
      : at([-1.2, 0], [1.2, 0]) + at([0, -1.2], [0, 1.2]);
  return draw("path", { d: open, stroke: colour, class: "mark open" });
}

function label(x, y, text, attributes = {}) {
  return draw("text", { x: px(x), y: px(y), ...attributes }, text);
}

function size(svg, width, height) {
  for (const [name, value] of [
    ["width", width],
    ["height", height],
    ["viewBox", `0 0 ${width} ${height}`],
  ]) {
    svg.setAttribute(name, value);
  }
}

// Grid, numbers and titles; the title of y stands above, where it can be read without turning one's head.
function axes(svg, x, y, titles, { numbers = true } = {}) {
  const grid = draw("g", { class: "grid" });
  svg.append(grid);
  for (const one of y.ticks) {
    grid.append(draw("line", { x1: x.from, x2: x.to, y1: px(y(one)), y2: px(y(one)) }));
    svg.append(label(x.from - 6, y(one) + 4, tick(one), { "text-anchor": "end" }));
  }
  let end = -Infinity;
  for (const one of numbers ? x.ticks : []) {
    grid.append(draw("line", { x1: px(x(one)), x2: px(x(one)), y1: y.to, y2: y.from }));
    const half = wide(tick(one)) / 2;
    if (x(one) - half < end + 4) continue;
    end = x(one) + half;
    svg.append(label(x(one), y.from + 17, tick(one), { "text-anchor": "middle" }));
  }
  grid.append(draw("line", { x1: x.from, x2: x.to, y1: y.from, y2: y.from, class: "base" }));
  svg.append(label(2, 13, cut(titles[1], x.to - 2), { class: "title" }));
  if (titles[0]) {
    svg.append(label(x.to, y.from + 36, cut(titles[0], x.to - 4), { class: "title", "text-anchor": "end" }));
  }
}

function bounded(values, log = false) {
  const found = extent(log ? values.filter((one) => one > 0) : values);
  if (!found) return log ? [1, 10] : [0, 1];
  if (log) return found[0] < found[1] ? found : [found[0] / 2, found[1] * 2];
  return found[0] < found[1] ? found : [found[0] - 0.5, found[1] + 0.5];
}

// The range of y, with 0 in it and a little room.
function upright(values) {
  const [low, high] = extent(values) || [0, 1];
  const [a, b] = [Math.min(0, low), Math.max(0, high)];
  const room = (b - a || 1) * 0.04;
  return [a < 0 ? a - room : 0, b > 0 || a === b ? b + room : 0];
}

const roomLeft = (low, high) => Math.max(34, ...steps(low, high, 5).map((one) => wide(tick(one)) + 12));

// A path through places; what is not known leaves a gap.
function path(xs, ys) {
  let d = "";
  let pen = "M";
  xs.forEach((x, i) => {
    const there = known(x) && known(ys[i]);
    if (there) d += `${pen}${px(x)} ${px(ys[i])}`;
    pen = there ? "L" : "M";
  });
  return d;
}

// Room at the right for the names of lines to compare with; on a narrow page the legend has them alone.
function roomRight(all, width) {
  const names = all.filter((one) => one.style !== "data").map((one) => wide(spelt(one.name), 11));
  return width < 700 || !names.length ? 14 : Math.min(Math.max(...names) + 16, 190);
}

// The names, each at its line's end or as near as the others let it; an upright line's stands at its top.
function named(svg, all, x, y, width) {
  if (width < 700) return;
  let last = -Infinity;
  const ends = [];
  for (const { name, xs, ys } of all) {
    const end = lastKnown(xs, ys);
    if (end < 0) continue;
    if (xs.length > 1 && xs.every((one) => one === xs[0]))
      svg.append(label(xs[0] + 5, y.to + 8, spelt(name), { class: "aside" }));
    else ends.push({ name, y: ys[end] });
  }
  ends.sort((a, b) => a.y - b.y);
  for (const one of ends) {
    last = Math.max(one.y + 4, last + 12);
    svg.append(label(x.to + 6, last, cut(one.name, width - x.to - 6, 11), { class: "small" }));
  }
}

function lastKnown(xs, ys) {
  for (let i = ys.length - 1; i >= 0; i -= 1) if (known(xs[i]) && known(ys[i])) return i;
  return -1;
}

// ---- lines -------------------------------------------------------------------------------------

function lines(svg, width, data, { hidden }) {
  const strip = data.tokens ? 62 : 0;
  const height = 330 + strip;
  const shown = styled(data.series).filter((one) => !hidden.has(one.name));
  const [low, high] = upright(shown.flatMap((one) => [...one.y, ...(one.low || []), ...(one.high || [])]));
  const x = scale(...bounded(data.x, data.log_x), roomLeft(low, high), width - roomRight(shown, width), {
    log: data.log_x,
    count: width < 500 ? 4 : 8,
  });
  const y = scale(low, high, 330 - 48, 26);
  const xs = data.x.map((one) => (known(one) && (one > 0 || !data.log_x) ? x(one) : null));
  size(svg, width, height);
  axes(svg, x, y, [data.x_title, data.y_title]);
  const ends = [];
  const ordered = [
    ...shown.filter((one) => one.style !== "data"),
    ...shown.filter((one) => one.style === "data"),
  ];
  for (const one of ordered) {
    const ys = one.y.map((value) => (known(value) ? y(value) : null));
    if (one.low && one.high)
      svg.append(draw("path", { d: band(xs, one.low, one.high, y), fill: one.colour, class: "band" }));
    svg.append(
      draw("path", {
        d: path(xs, ys),
        stroke: one.colour,
        "stroke-dasharray": one.dash || null,
        class: `line ${one.style}`,
      }),
    );
    if (one.shape) dot(svg, one, xs, ys);
    else ends.push({ name: one.name, xs, ys });
  }
  named(svg, ends, x, y, width);
  if (strip) tokenStrip(svg, data, xs, x, 330);
  return shown.map((one) =>
    data.x.map(
      (at, i) =>
        known(one.y[i]) &&
        known(xs[i]) && {
          x: xs[i],
          y: y(one.y[i]),
          lines: () => [
            one.name,
            `${data.x_title}: ${number(at)}`,
            `${data.y_title}: ${number(one.y[i])}${interval(one, i)}`,
            ...(data.tokens ? [`${number(data.tokens[i])} tokens`] : []),
          ],
        },
    ),
  );
}

function interval(one, i) {
  return one.low && one.high && known(one.low[i]) && known(one.high[i])
    ? ` (${number(one.low[i])} to ${number(one.high[i])})`
    : "";
}

// Each stretch of the band whose ends are known, there along the upper ends and back along the lower ones.
function band(xs, low, high, y) {
  let d = "";
  let run = [];
  const close = () => {
    if (run.length > 1) {
      const there = run.map((i) => `${px(xs[i])} ${px(y(high[i]))}`);
      const back = run.reverse().map((i) => `${px(xs[i])} ${px(y(low[i]))}`);
      d += `M${[...there, ...back].join("L")}Z`;
    }
    run = [];
  };
  xs.forEach((x, i) => {
    if (known(x) && known(low[i]) && known(high[i])) run.push(i);
    else close();
  });
  close();
  return d;
}

// Marks that tell series apart; of many places only some, but each place that stands alone.
function dot(svg, one, xs, ys) {
  const every = Math.max(1, Math.round(xs.length / 24));
  ys.forEach((y, i) => {
    if (!known(y) || !known(xs[i])) return;
    const alone = !known(ys[i - 1]) && !known(ys[i + 1]);
    if (alone || i % every === Math.floor(every / 2)) svg.append(shape(one.shape, xs[i], y, 3.5, one.colour));
  });
}

function tokenStrip(svg, data, xs, x, top) {
  const [, most] = extent(data.tokens) || [0, 1];
  const tall = scale(0, most || 1, top + 50, top + 18);
  const drawn = draw("g", { class: "strip" });
  data.tokens.forEach((count, i) => {
    if (!known(count) || !known(xs[i])) return;
    const left = known(xs[i - 1]) ? (xs[i - 1] + xs[i]) / 2 : xs[i] - 2;
    const right = known(xs[i + 1]) ? (xs[i + 1] + xs[i]) / 2 : xs[i] + 2;
    const wideness = Math.max(right - left - (right - left > 4 ? 1 : 0), 0.3);
    drawn.append(
      draw("rect", {
        x: px(left),
        y: px(tall(count)),
        width: px(wideness),
        height: px(top + 50 - tall(count)),
      }),
    );
  });
  svg.append(drawn, draw("line", { x1: x.from, x2: x.to, y1: top + 50, y2: top + 50, class: "rule" }));
  svg.append(label(2, top + 12, `tokens (at most ${number(most)})`, { class: "title" }));
}

// ---- points ------------------------------------------------------------------------------------

function points(svg, width, data, { hidden, wanted }) {
  const height = 380;
  const curves = styled(data.curves).filter((one) => !hidden.has(one.name));
  const [low, high] = upright([...data.y, ...curves.flatMap((one) => one.y)]);
  const allX = [...data.x, ...curves.flatMap((one) => one.x)];
  const [left, right] = bounded(allX, data.log_x);
  const x = scale(left, right, roomLeft(low, high), width - roomRight(curves, width), {
    log: data.log_x,
    count: width < 500 ? 4 : 8,
  });
  const y = scale(low, high, height - 48, 26);
  const at = (value) => (known(value) && (value > 0 || !data.log_x) ? x(value) : null);
  size(svg, width, height);
  axes(svg, x, y, [data.x_title, data.y_title]);
  const order = data.x.map((_, i) => i).filter((i) => known(at(data.x[i])) && known(data.y[i]));
  const found = wanted ? order.filter((i) => spelt(data.labels[i]).toLowerCase().includes(wanted)) : order;
  const r = order.length > 400 ? 2 : 3.5;
  const cloud = draw("g", { class: wanted ? "cloud dimmed" : "cloud", fill: "var(--s0)" });
  for (const i of order) cloud.append(draw("circle", { cx: px(at(data.x[i])), cy: px(y(data.y[i])), r }));
  svg.append(cloud);
  const ends = [];
  for (const one of curves) {
    const [xs, ys] = [one.x.map(at), one.y.map((value) => (known(value) ? y(value) : null))];
    const colour = one.style === "data" ? "var(--s0)" : "var(--text)";
    svg.append(
      draw("path", {
        d: path(xs, ys),
        stroke: colour,
        "stroke-dasharray": one.dash || null,
        class: `line ${one.style}`,
      }),
    );
    if (one.style !== "data") ends.push({ name: one.name, xs, ys });
  }
  named(svg, ends, x, y, width);
  if (wanted) highlight(svg, found, data, at, y, x);
  found.sort((a, b) => data.x[a] - data.x[b]);
  const marks = found.map((i) => ({
    x: at(data.x[i]),
    y: y(data.y[i]),
    lines: () => [
      data.labels[i],
      `${data.x_title}: ${number(data.x[i])}`,
      `${data.y_title}: ${number(data.y[i])}`,
    ],
  }));
  marks.found = wanted ? `${number(found.length)} of ${number(order.length)} points` : "";
  return [marks];
}

// What was searched for, with names as long as these find room.
function highlight(svg, found, data, at, y, x) {
  const used = [];
  for (const i of found) {
    const [a, b] = [at(data.x[i]), y(data.y[i])];
    svg.append(shape("diamond", a, b, 4.5, "var(--s1)"));
    const name = cut(data.labels[i], 140);
    const end = a + 8 + wide(name) > x.to;
    const box = [end ? a - 8 - wide(name) : a + 8, b];
    if (
      used.length >= 40 ||
      used.some(([c, d, e]) => Math.abs(d - b) < 12 && box[0] < e && c < box[0] + wide(name))
    )
      continue;
    used.push([box[0], b, box[0] + wide(name)]);
    svg.append(
      label(end ? a - 8 : a + 8, b + 4, name, { "text-anchor": end ? "end" : "start", class: "found" }),
    );
  }
}
