// Heatmaps, bars and radars; their marks are as those of plots.js.

// ---- heatmap -----------------------------------------------------------------------------------

function heatmap(svg, width, given) {
  const [least, most] = extent(given.values.flat()) || [0, 1];
  const data = { ...given, low: given.low ?? least, high: given.high ?? most };
  const [rows, columns] = [data.rows.length, data.columns.length];
  const left = Math.min(
    Math.max(44, ...data.rows.map((one) => wide(spelt(one)) + 12)),
    Math.max(90, width * 0.28),
    220,
  );
  const right = data.row_tokens ? 70 : 10;
  const cell = Math.min(Math.max((width - left - right) / Math.max(columns, 1), 13), 110);
  const tall = rows > 24 ? 18 : 25;
  const head = columnHead(data.columns, cell);
  const top = 24 + head.room;
  const whole = Math.max(Math.ceil(left + columns * cell + right), Math.min(width, 340));
  size(svg, whole, top + rows * tall + 62);
  const titles = `rows: ${spelt(data.row_title)}; columns: ${spelt(data.column_title)}`;
  svg.append(label(2, 13, cut(titles, whole - right - 4), { class: "title" }));
  svg.append(
    draw("rect", { x: px(left), y: top, width: px(columns * cell), height: rows * tall, class: "level" }),
  );
  data.columns.forEach((one, j) => columnLabel(svg, one, j, left + (j + 0.5) * cell, top - 6, head));
  const marks = data.rows.map((name, i) => {
    const y = top + i * tall;
    svg.append(label(left - 6, y + tall / 2 + 4, cut(name, left - 10), { "text-anchor": "end" }));
    if (data.row_tokens)
      svg.append(
        label(left + columns * cell + 64, y + tall / 2 + 4, number(data.row_tokens[i]), {
          "text-anchor": "end",
          class: "aside",
        }),
      );
    return data.columns.map((column, j) => {
      const x = left + j * cell;
      heat(svg, data, data.values[i][j], x, y, cell, tall);
      return {
        x: x + cell / 2,
        y: y + tall / 2,
        w: cell,
        h: tall,
        lines: () => [
          `${data.value_title}: ${number(data.values[i][j])}`,
          `${data.row_title}: ${spelt(name)}`,
          `${data.column_title}: ${spelt(column)}`,
          ...(data.row_tokens ? [`${number(data.row_tokens[i])} tokens`] : []),
        ],
      };
    });
  });
  if (data.row_tokens)
    svg.append(label(left + columns * cell + 64, 13, "tokens", { class: "title", "text-anchor": "end" }));
  key(svg, data, left, top + rows * tall + 16, whole);
  return marks;
}

// Column labels stand upright where they have room, or where every second or so is enough; else aslant.
function columnHead(columns, cell) {
  const widest = Math.max(0, ...columns.map((one) => wide(spelt(one), 11)));
  const plain = columns.every((one) => /^[\d.,+-]+$/.test(one));
  const every = Math.max(1, Math.ceil((widest + 4) / cell));
  if (every === 1 || plain) return { every, aslant: false, room: 16 };
  return { every: 1, aslant: true, room: Math.min(widest, 110) * 0.8 + 14 };
}

function columnLabel(svg, text, place, x, y, head) {
  if (place % head.every) return;
  const turned = head.aslant ? `rotate(-52 ${px(x)} ${px(y)})` : null;
  svg.append(
    label(x, y, cut(text, head.aslant ? 110 : 1e9, 11), {
      "text-anchor": head.aslant ? "start" : "middle",
      transform: turned,
      class: "small",
    }),
  );
}

// How far a value is from the middle of the colours and on which side; as strong is as far, on either side.
function strength(data, value) {
  const middle = data.centre === null ? data.low : data.centre;
  const room = Math.max(data.high - middle, middle - data.low);
  return { above: value >= middle, part: room > 0 ? Math.min(Math.abs(value - middle) / room, 1) : 0 };
}

// The colour is laid over that of the middle, so that one drawing serves light, dark and paper.
function heat(svg, data, value, x, y, cell, tall) {
  const at = { x: px(x), y: px(y), width: px(cell - 1), height: tall - 1 };
  if (!known(value)) {
    svg.append(draw("path", { d: `M${at.x} ${at.y + at.height}l${at.width} ${-at.height}`, class: "gap" }));
    return;
  }
  const { above, part } = strength(data, value);
  svg.append(draw("rect", { ...at, class: above ? "above" : "below", "fill-opacity": px(part * 100) / 100 }));
  if (cell < 27) return;
  svg.append(
    label(x + cell / 2, y + tall / 2 + 3.5, short(value, cell > 44 ? 3 : 2), {
      class: part > 0.55 ? "value on" : "value",
      "text-anchor": "middle",
    }),
  );
}

function short(value, digits) {
  const size = Math.abs(value);
  if (value === 0) return "0";
  if (size >= 1000) return `${Math.round(value / 1000).toLocaleString("en-GB")}k`;
  if (size >= 1) return String(Number(value.toPrecision(3)));
  return size < 0.0005 ? "~0" : value.toFixed(size < 0.1 ? 3 : digits).replace("0.", ".");
}

function key(svg, data, left, top, whole) {
  const wideness = Math.min(220, whole - left - 20);
  const count = 44;
  svg.append(draw("rect", { x: px(left), y: top, width: wideness, height: 10, class: "level" }));
  for (let i = 0; i < count; i += 1) {
    const { above, part } = strength(data, data.low + ((i + 0.5) / count) * (data.high - data.low));
    const place = {
      x: px(left + (i * wideness) / count),
      width: px(wideness / count + 0.2),
      y: top,
      height: 10,
    };
    svg.append(
      draw("rect", { ...place, class: above ? "above" : "below", "fill-opacity": px(part * 100) / 100 }),
    );
  }
  // The middle makes way for no end: it gives its number to the other side, or takes the place of the lower end.
  const middle = data.centre === null ? 0 : (data.centre - data.low) / (data.high - data.low || 1);
  const near = (1 - middle) * wideness < 40;
  const ends = [
    [0, data.low, "start"],
    [1, data.high, near ? "start" : "end"],
  ];
  if (data.centre !== null && middle * wideness < 35) ends[0] = [middle, data.centre, "start"];
  else if (data.centre !== null && middle < 1) ends.push([middle, data.centre, near ? "end" : "middle"]);
  for (const [part, value, anchor] of ends) {
    const x = left + part * wideness;
    svg.append(label(x, top + 24, number(value, 3), { "text-anchor": anchor, class: "small" }));
    svg.append(draw("line", { x1: px(x), x2: px(x), y1: top + 10, y2: top + 14, class: "rule" }));
  }
  const gaps = data.values.some((row) => row.some((one) => !known(one)));
  const said = `${spelt(data.value_title)}${gaps ? "; a stroke: not known" : ""}`;
  const beside = left + wideness + 12;
  if (whole - beside > wide(said, 11)) svg.append(label(beside, top + 10, said, { class: "small" }));
  else svg.append(label(2, top + 40, cut(said, whole, 11), { class: "small" }));
}

// ---- bars --------------------------------------------------------------------------------------

function bars(svg, width, data) {
  const names = data.labels.map(spelt);
  const lying = names.length < 5 || (names.length <= 60 && names.some((one) => one.length > 5));
  const values = [
    ...data.values,
    ...(data.low || []),
    ...(data.high || []),
    data.reference && data.reference.value,
  ];
  const [low, high] = upright(values);
  return lying
    ? lyingBars(svg, width, data, names, low, high)
    : standingBars(svg, width, data, names, low, high);
}

function whisker(svg, data, i, at) {
  if (!data.low || !data.high || !known(data.low[i]) || !known(data.high[i])) return null;
  svg.append(draw("path", { d: at(data.low[i], data.high[i]), class: "whisker" }));
  return data.high[i];
}

const barMark = (data, names, i, place) => ({
  ...place,
  lines: () => [names[i], `${data.y_title}: ${number(data.values[i])}${interval(data, i)}`],
});

function lyingBars(svg, width, data, names, low, high) {
  const tall = 24;
  const left = Math.min(Math.max(30, ...names.map((one) => wide(one))) + 12, width * 0.4, 240);
  const x = scale(low, high, left, width - 60, { count: width < 500 ? 3 : 6 });
  const top = data.reference ? 44 : 28;
  const y = scale(0, 1, top + names.length * tall, top);
  y.ticks = [];
  size(svg, width, top + names.length * tall + 26);
  axes(svg, x, y, ["", data.y_title]);
  const marks = names.map((name, i) => {
    const middle = top + (i + 0.5) * tall;
    const value = data.values[i];
    svg.append(label(left - 6, middle + 4, cut(name, left - 10), { "text-anchor": "end" }));
    const [a, b] = known(value) ? [Math.min(x(0), x(value)), Math.max(x(0), x(value))] : [x(0), x(0)];
    svg.append(draw("rect", { x: px(a), y: middle - 8, width: px(b - a), height: 16, class: "bar" }));
    const end = whisker(
      svg,
      data,
      i,
      (from, to) =>
        `M${px(x(from))} ${middle}H${px(x(to))}M${px(x(from))} ${middle - 4}v8M${px(x(to))} ${middle - 4}v8`,
    );
    const beside = Math.max(b, end === null ? 0 : x(end)) + 6;
    svg.append(label(beside, middle + 4, number(value, 3), { class: "aside" }));
    return [barMark(data, names, i, { x: (a + b) / 2, y: middle, w: width, h: tall })];
  });
  if (data.reference && known(data.reference.value)) {
    const at = px(x(data.reference.value));
    svg.append(
      draw("line", { x1: at, x2: at, y1: top - 8, y2: top + names.length * tall, class: "line reference" }),
    );
    const anchor = at > width * 0.6 ? "end" : "start";
    svg.append(label(at, top - 12, said(data.reference), { "text-anchor": anchor, class: "aside" }));
  }
  return marks;
}

const said = (reference) => `${spelt(reference.name)}: ${number(reference.value, 3)}`;

function standingBars(svg, width, data, names, low, high) {
  const left = roomLeft(low, high);
  const whole = Math.max(width, left + 14 + names.length * 9);
  const x = scale(0, names.length, left, whole - 14);
  x.ticks = [];
  const y = scale(low, high, 300 - 48, 26);
  size(svg, whole, 300);
  axes(svg, x, y, [data.x_title, data.y_title]);
  const step = (x.to - x.from) / Math.max(names.length, 1);
  const every = Math.max(1, Math.ceil((Math.max(0, ...names.map((one) => wide(one))) + 4) / step));
  const marks = names.map((name, i) => {
    const middle = x(i + 0.5);
    const value = data.values[i];
    const half = Math.min(step * 0.4, 18);
    if (i % every === 0) svg.append(label(middle, y.from + 17, name, { "text-anchor": "middle" }));
    if (known(value)) {
      const [a, b] = [Math.min(y(0), y(value)), Math.max(y(0), y(value))];
      svg.append(
        draw("rect", {
          x: px(middle - half),
          y: px(a),
          width: px(2 * half),
          height: px(b - a),
          class: "bar",
        }),
      );
    } else svg.append(label(middle, y(0) - 4, "?", { "text-anchor": "middle", class: "aside" }));
    whisker(
      svg,
      data,
      i,
      (from, to) =>
        `M${px(middle)} ${px(y(from))}V${px(y(to))}M${px(middle - 3)} ${px(y(from))}h6M${px(middle - 3)} ${px(y(to))}h6`,
    );
    return barMark(data, names, i, { x: middle, y: known(value) ? y(value) : y(0), w: step, h: 600 });
  });
  if (data.reference && known(data.reference.value)) {
    const at = px(y(data.reference.value));
    svg.append(draw("line", { x1: x.from, x2: x.to, y1: at, y2: at, class: "line reference" }));
    svg.append(label(x.to, 13, `- - ${said(data.reference)}`, { "text-anchor": "end", class: "aside" }));
  }
  return [marks];
}

// ---- radar -------------------------------------------------------------------------------------

function radar(svg, width, data, { hidden }) {
  const whole = Math.max(Math.min(width, 620), 300);
  const shown = styled(data.series.map((one) => ({ ...one, style: "data" }))).filter(
    (one) => !hidden.has(one.name),
  );
  const most = (extent([...shown.flatMap((one) => one.values), data.reference]) || [0, 1])[1] || 1;
  const names = data.axes.map((one) => cut(one, 70, 11));
  const centre = whole / 2;
  const far = centre - 14 - Math.max(10, ...names.map((one) => wide(one, 11)));
  const r = scale(0, most, 0, far, { count: 4 });
  const at = (i, value) => {
    const turn = (2 * Math.PI * i) / data.axes.length - Math.PI / 2;
    return [centre + Math.cos(turn) * r(value), centre + Math.sin(turn) * r(value)];
  };
  size(svg, whole, whole);
  const grid = draw("g", { class: "grid" });
  svg.append(grid);
  const ring = (value, attributes) => {
    const d = `M${data.axes.map((_, i) => at(i, value).map(px).join(" ")).join("L")}Z`;
    return draw("path", { d, fill: "none", ...attributes });
  };
  for (const one of r.ticks) grid.append(ring(one));
  data.axes.forEach((_, i) => {
    const [x, y] = at(i, most);
    const turn = (2 * Math.PI * i) / data.axes.length - Math.PI / 2;
    grid.append(draw("line", { x1: centre, y1: centre, x2: px(x), y2: px(y) }));
    const cosine = Math.cos(turn);
    const anchor = cosine > 0.2 ? "start" : cosine < -0.2 ? "end" : "middle";
    svg.append(
      label(centre + cosine * (far + 6), centre + Math.sin(turn) * (far + 8) + 4, names[i], {
        "text-anchor": anchor,
        class: "small",
      }),
    );
  });
  if (known(data.reference)) svg.append(ring(data.reference, { class: "line reference" }));
  for (const one of shown) {
    const places = one.values.map((value, i) => (known(value) ? at(i, value) : [null, null]));
    const round = [...places, places[0] || [null, null]];
    const d = path(
      round.map(([x]) => x),
      round.map(([, y]) => y),
    );
    svg.append(
      draw("path", { d, stroke: one.colour, "stroke-dasharray": one.dash || null, class: "line data" }),
    );
    for (const [x, y] of places) if (known(x)) svg.append(shape(one.shape, x, y, 2.5, one.colour));
  }
  for (const one of r.ticks.slice(1))
    svg.append(label(centre + 3, centre - r(one) - 2, tick(one), { class: "aside" }));
  return shown.map((one) =>
    one.values.map((value, i) => {
      if (!known(value)) return null;
      const [x, y] = at(i, value);
      return { x, y, lines: () => [one.name, `${spelt(data.axes[i])}: ${number(value)}`] };
    }),
  );
}
