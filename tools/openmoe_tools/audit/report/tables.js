// Tables, each sortable, with the tables of plots among them; cards; and coloured text.

const MOST_ROWS = 2000;
// Whole numbers that name something are written as they are, without marks for thousands.
const NAMES = /^(id|layer|step|expert|position)$/i;

function cellText(value, column) {
  return known(value) && Number.isInteger(value) && NAMES.test(column) ? String(value) : number(value);
}

// Sorting and searching go through all rows, whatever number is shown.
function table(columns, rows, { wanted = "", caption = "" } = {}) {
  let sorted = null;
  let down = false;
  const body = make("tbody");
  const note = make("p", { class: "soft" });
  const left = columns.map((_, j) => rows.some((row) => typeof row[j] === "string"));
  const heads = columns.map((column, j) =>
    make(
      "th",
      { scope: "col", class: left[j] ? "text" : "number" },
      make("button", { type: "button", onclick: () => sort(j) }, spelt(column)),
    ),
  );
  const searched = wanted
    ? rows.filter((row) =>
        row.some((cell) =>
          spelt(cell ?? UNKNOWN)
            .toLowerCase()
            .includes(wanted),
        ),
      )
    : rows;

  function sort(j) {
    // Numbers are first sought by the largest, text from its beginning.
    down = sorted === j ? !down : !left[j];
    sorted = j;
    heads.forEach((head, i) =>
      head.setAttribute("aria-sort", i !== j ? "none" : down ? "descending" : "ascending"),
    );
    show();
  }
  function show() {
    const ordered =
      sorted === null ? searched : [...searched].sort((a, b) => compared(a[sorted], b[sorted], down));
    body.replaceChildren(
      ...ordered
        .slice(0, MOST_ROWS)
        .map((row) =>
          make(
            "tr",
            {},
            ...row.map((cell, j) =>
              make("td", { class: left[j] ? "text" : "number", dir: "auto" }, cellText(cell, columns[j])),
            ),
          ),
        ),
    );
    note.textContent =
      ordered.length > MOST_ROWS
        ? `${number(MOST_ROWS)} of ${number(ordered.length)} rows are shown; sorting and searching go through all.`
        : wanted
          ? `${number(ordered.length)} of ${number(rows.length)} rows.`
          : "";
  }
  show();
  const made = make(
    "table",
    {},
    make("caption", {}, spelt(caption)),
    make("thead", {}, make("tr", {}, ...heads)),
    body,
  );
  return make(
    "div",
    {},
    make(
      "div",
      { class: "scroll", tabindex: 0, role: "region", "aria-label": spelt(caption) || "Table" },
      made,
    ),
    note,
  );
}

// What is not known comes last either way.
function compared(a, b, down) {
  if (a === null || b === null) return (a === null) - (b === null);
  const order = known(a) && known(b) ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return down ? -order : order;
}

// The tables that say what a plot shows: of each its columns and rows.
const TWINS = {
  heatmap: (data) => [
    {
      columns: [data.row_title, ...(data.row_tokens ? ["tokens"] : []), ...data.columns],
      rows: data.rows.map((name, i) => [
        name,
        ...(data.row_tokens ? [data.row_tokens[i]] : []),
        ...data.values[i],
      ]),
    },
  ],
  lines: (data) => [
    {
      columns: [
        data.x_title,
        ...(data.tokens ? ["tokens"] : []),
        ...data.series.flatMap((one) => [
          one.name,
          ...(one.low ? [`${one.name}, low`] : []),
          ...(one.high ? [`${one.name}, high`] : []),
        ]),
      ],
      rows: data.x.map((x, i) => [
        x,
        ...(data.tokens ? [data.tokens[i]] : []),
        ...data.series.flatMap((one) => [
          one.y[i],
          ...(one.low ? [one.low[i]] : []),
          ...(one.high ? [one.high[i]] : []),
        ]),
      ]),
    },
  ],
  points: (data) => [
    data.columns && data.rows
      ? { columns: data.columns, rows: data.rows }
      : {
          columns: ["label", data.x_title, data.y_title],
          rows: data.x.map((x, i) => [data.labels[i], x, data.y[i]]),
        },
    ...(data.curves.length
      ? [
          {
            caption: "Curves",
            columns: ["curve", data.x_title, data.y_title],
            rows: data.curves.flatMap((one) => one.x.map((x, i) => [one.name, x, one.y[i]])),
          },
        ]
      : []),
  ],
  bars: (data) => [
    {
      caption: data.reference ? `To compare with: ${said(data.reference)}` : "",
      columns: [data.x_title, data.y_title, ...(data.low ? ["low"] : []), ...(data.high ? ["high"] : [])],
      rows: data.labels.map((name, i) => [
        name,
        data.values[i],
        ...(data.low ? [data.low[i]] : []),
        ...(data.high ? [data.high[i]] : []),
      ]),
    },
  ],
  radar: (data) => [
    {
      caption: known(data.reference) ? `To compare with: ${number(data.reference)}` : "",
      columns: ["series", ...data.axes],
      rows: data.series.map((one) => [one.name, ...one.values]),
    },
  ],
  text: (data) => [
    {
      columns: ["token", "group", "note"],
      rows: data.pieces.map((one) => [one.text, data.groups[one.group] ?? String(one.group), one.note]),
    },
  ],
};

// ---- cards -------------------------------------------------------------------------------------

function cards(data, wanted) {
  const texts = (card) => [
    card.title,
    ...card.facts.flat(),
    ...card.tables.flatMap((one) => [one.title, ...one.rows.flat()]),
  ];
  const found = data.cards.filter(
    (card) =>
      !wanted ||
      texts(card).some((one) =>
        spelt(one ?? "")
          .toLowerCase()
          .includes(wanted),
      ),
  );
  const made = found.map((card) =>
    make(
      "article",
      { class: "card" },
      make("h4", {}, spelt(card.title)),
      make(
        "dl",
        { class: "facts" },
        ...card.facts.flatMap(([name, text]) => [make("dt", {}, spelt(name)), make("dd", {}, spelt(text))]),
      ),
      ...card.tables.map((one, i) =>
        make(
          "details",
          { open: i === 0 || Boolean(wanted) },
          make("summary", {}, spelt(one.title)),
          table(one.columns, one.rows, { caption: `${card.title}, ${one.title}`, wanted }),
        ),
      ),
    ),
  );
  return {
    made: make("div", { class: "deck", tabindex: 0, role: "region", "aria-label": "Cards" }, ...made),
    found: wanted ? `${found.length} of ${data.cards.length} cards` : "",
  };
}

// ---- text --------------------------------------------------------------------------------------

// The number of a token's group stands where it changes, so that nothing hangs on colours; these are taken
// round the circle by the golden angle: neighbours in number are far apart in hue.
function text(data) {
  const body = make("p", { class: "sample", dir: "auto" });
  const marks = [];
  let last = null;
  for (const one of data.pieces) {
    const span = make("span", { class: "piece" });
    span.style.setProperty("--hue", Math.round((one.group * 137.508) % 360));
    if (one.group !== last) span.append(make("sup", {}, String(one.group)));
    last = one.group;
    span.append(spelt(one.text.replaceAll("\n", "↵")));
    body.append(span);
    if (one.text.includes("\n")) body.append(make("br"));
    marks.push({
      node: span,
      lines: () => [
        `${spelt(data.groups[one.group] ?? one.group)}: ${spelt(one.text)}`,
        ...spelt(one.note).split("; "),
      ],
    });
  }
  return { body, marks: [marks] };
}
