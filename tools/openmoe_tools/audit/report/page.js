// The page: which panel a figure shows, its controls, its legend, its table.

const report = JSON.parse(document.getElementById("report").textContent);
const start = JSON.parse(document.body.dataset.start);
const PLOTS = { heatmap, lines, points, bars, radar };
const figures = [];

// ---- a figure ----------------------------------------------------------------------------------

function begin(node) {
  const [section, place] = node.dataset.place.split(" ");
  const figure = report.sections[section].figures[place];
  const names = figure.panels.length ? Object.keys(figure.panels[0].keys) : [];
  const state = {
    node,
    figure,
    names,
    selects: {},
    linked: true,
    hidden: new Set(),
    wanted: "",
    marks: [],
    cursor: null,
  };
  for (const part of ["controls", "plot", "legend", "twin"]) state[part] = node.querySelector(`.${part}`);
  if (!figure.panels.length) return;
  state.panel =
    figure.panels.find((one) => names.every((name) => !(name in start) || one.keys[name] === start[name])) ||
    figure.panels[0];
  figures.push(state);
}

function show(state) {
  try {
    const { kind } = state.figure;
    const { data } = state.panel;
    state.cursor = null;
    hide();
    if (kind === "table")
      state.plot.replaceChildren(
        table(data.columns, data.rows, { caption: heading(state), wanted: state.wanted }),
      );
    else if (kind === "cards") deal(state, data);
    else if (kind === "text") write(state, data);
    else plot(state, data);
    twin(state);
  } catch (error) {
    complain(`${state.figure.id}: ${error.message}`);
    state.plot.replaceChildren(
      make(
        "p",
        { class: "empty" },
        `This figure could not be drawn (${error.message}); its data are in this file as JSON.`,
      ),
    );
  }
}

// What a figure shows now, for its title and for tables.
const heading = (state) =>
  [state.figure.title, ...state.names.map((name) => `${spaced(name)} ${spelt(state.panel.keys[name])}`)].join(
    ", ",
  );
const spaced = (name) => spelt(name).replaceAll("_", " ");

function plot(state, data) {
  const { kind, caption } = state.figure;
  const [title, description] = [`${state.node.id}-name`, `${state.node.id}-description`];
  const svg = draw("svg", { role: "img", "aria-labelledby": `${title} ${description}` });
  svg.append(draw("title", { id: title }, heading(state)));
  svg.append(
    draw("desc", { id: description }, `${kind}. ${spelt(caption)} All numbers are in the table below.`),
  );
  state.width = Math.max(state.plot.clientWidth - 2, 300);
  state.marks = PLOTS[kind](svg, state.width, data, state);
  if (!state.marks.flat().some(Boolean)) {
    const y = Number(svg.getAttribute("height")) / 2;
    svg.append(
      label(state.width / 2, y, state.wanted ? "Nothing is found." : "Nothing is known here.", {
        "text-anchor": "middle",
        class: "title",
      }),
    );
  }
  // The layer above takes the pointer: browsers would show the title of an SVG element over our own note.
  state.svg = svg;
  state.plot.replaceChildren(make("div", { class: "sheet" }, svg, make("div", { class: "over" })));
  state.plot.tabIndex = 0;
  state.plot.setAttribute("role", "group");
  state.plot.setAttribute("aria-label", `${heading(state)}. Arrow keys go through the values.`);
  if (state.found) state.found.textContent = state.marks[0]?.found || "";
  legend(state, data);
}

function legend(state, data) {
  const { kind } = state.figure;
  const all =
    kind === "lines"
      ? data.series
      : kind === "points"
        ? data.curves
        : kind === "radar"
          ? data.series.map((one) => ({ ...one, style: "data" }))
          : [];
  const samples = styled(all).map((one, place) => {
    const colour = kind === "points" ? (one.style === "data" ? "var(--s0)" : "var(--text)") : one.colour;
    const sample = draw("svg", { width: 34, height: 12, "aria-hidden": "true" });
    sample.append(
      draw("path", {
        d: "M1 6H33",
        stroke: colour,
        "stroke-dasharray": one.dash || null,
        class: `line ${one.style}`,
      }),
    );
    if (one.shape && kind !== "points") sample.append(shape(one.shape, 17, 6, 3.5, colour));
    const toggle = () => {
      if (!state.hidden.delete(one.name)) state.hidden.add(one.name);
      show(state);
      state.legend.querySelectorAll("button")[place].focus();
    };
    return make(
      "li",
      {},
      make(
        "button",
        {
          type: "button",
          "aria-pressed": String(!state.hidden.has(one.name)),
          title: "Show or hide",
          onclick: toggle,
        },
        sample,
        spelt(one.name),
      ),
    );
  });
  if (kind === "radar" && known(data.reference)) {
    const sample = draw(
      "svg",
      { width: 34, height: 12, "aria-hidden": "true" },
      draw("path", { d: "M1 6H33", class: "line reference" }),
    );
    samples.push(make("li", {}, make("span", {}, sample, `even: ${number(data.reference, 3)}`)));
  }
  state.legend.replaceChildren(...samples);
}

function deal(state, data) {
  const { made, found } = cards(data, state.wanted);
  state.plot.replaceChildren(made);
  if (state.found) state.found.textContent = found;
}

function write(state, data) {
  const { body, marks } = text(data);
  state.marks = marks;
  state.svg = null;
  body.tabIndex = 0;
  body.setAttribute("role", "group");
  body.setAttribute("aria-label", `${heading(state)}. Arrow keys go through the tokens.`);
  state.plot.replaceChildren(body);
  const groups = [...new Set(data.pieces.map((one) => one.group))].sort((a, b) => a - b);
  state.legend.replaceChildren(
    ...groups.map((group) => {
      const swatch = make("span", { class: "piece" }, String(group));
      swatch.style.setProperty("--hue", Math.round((group * 137.508) % 360));
      return make("li", {}, swatch, ` ${spelt(data.groups[group] ?? "")}`);
    }),
  );
}

// A table beside a plot is made when it is opened: most readers open few.
function twin(state) {
  const stands = state.twin?.open ? `${heading(state)}/${state.wanted}` : "";
  if (!state.twin || state.twinned === stands) return;
  state.twinned = stands;
  while (state.twin.children.length > 1) state.twin.lastChild.remove();
  if (!stands) return;
  for (const one of TWINS[state.figure.kind](state.panel.data)) {
    state.twin.append(
      table(one.columns, one.rows, { caption: one.caption || heading(state), wanted: state.wanted }),
    );
  }
}

// ---- controls ----------------------------------------------------------------------------------

function controls(state) {
  const { figure, names } = state;
  for (const name of names) {
    const values = [...new Set(figure.panels.map((one) => one.keys[name]))];
    if (values.length < 2) {
      state.controls.append(make("span", {}, `${spaced(name)} ${spelt(values[0])}`));
      continue;
    }
    const options = values.map((one) => make("option", {}, spelt(one)));
    const select = make(
      "select",
      { onchange: () => choose(state, name, values[select.selectedIndex]) },
      ...options,
    );
    state.selects[name] = { tell: (value) => (select.selectedIndex = values.indexOf(value)) };
    state.selects[name].tell(state.panel.keys[name]);
    state.controls.append(make("label", {}, `${spaced(name)} `, select));
  }
  const shared = Object.keys(state.selects).some((name) =>
    figures.some((other) => other !== state && other.names.includes(name)),
  );
  if (shared) {
    const box = make("input", {
      type: "checkbox",
      checked: true,
      onchange: (event) => (state.linked = event.target.checked),
    });
    state.controls.append(
      make(
        "label",
        { class: "linked", title: "A choice here is one for all figures that have it, and theirs for this" },
        box,
        " all figures",
      ),
    );
  }
  if (figure.kind === "points" || figure.kind === "cards") search(state);
}

function search(state) {
  const what = state.figure.kind === "points" ? "Find points by label" : "Find cards by any text";
  const input = make("input", {
    type: "search",
    placeholder: what,
    "aria-label": what,
    oninput: (event) => {
      state.wanted = event.target.value.trim().toLowerCase();
      show(state);
    },
  });
  state.found = make("span", { class: "soft", role: "status" });
  state.controls.append(input, state.found);
}

// A choice moves all figures that are linked and have it; the page stays where the reader looks.
function choose(state, name, value) {
  const before = state.node.getBoundingClientRect().top;
  for (const one of state.linked ? figures.filter((other) => other.linked) : [state]) {
    const wanted = { ...one.panel.keys, [name]: value };
    const agreeing = (panel) => one.names.filter((each) => panel.keys[each] === wanted[each]).length;
    const able = one.names.includes(name)
      ? one.figure.panels.filter((panel) => panel.keys[name] === value)
      : [];
    if (!able.length) continue;
    // Not every combination need be there: the nearest is shown, and the selectors say which that is.
    const best = able.reduce((a, b) => (agreeing(b) > agreeing(a) ? b : a));
    if (best === one.panel) continue;
    one.panel = best;
    for (const [each, select] of Object.entries(one.selects)) select.tell(best.keys[each]);
    show(one);
  }
  window.scrollBy(0, state.node.getBoundingClientRect().top - before);
}

// ---- the whole page ----------------------------------------------------------------------------

async function copy(event) {
  const source = document.getElementById(event.target.dataset.copy);
  try {
    await navigator.clipboard.writeText(source.textContent);
  } catch {
    // A page from a file may not have the clipboard: the text is selected, and the older way tried.
    getSelection().selectAllChildren(source);
    document.execCommand("copy");
  }
  event.target.textContent = "Copied";
}

function save() {
  const made = URL.createObjectURL(new Blob([JSON.stringify(report)], { type: "application/json" }));
  make("a", { href: made, download: "report.json" }).click();
  URL.revokeObjectURL(made);
}

function openTables() {
  for (const state of figures) {
    if (!state.twin) continue;
    state.twin.open = true;
    twin(state);
  }
}

for (const node of document.querySelectorAll(".figure")) begin(node);
for (const state of figures) {
  controls(state);
  listen(state);
  state.twin?.addEventListener("toggle", () => twin(state));
  show(state);
}
for (const button of document.querySelectorAll("[data-copy]")) button.addEventListener("click", copy);
document.getElementById("save").addEventListener("click", save);
document.getElementById("open-tables").addEventListener("click", openTables);
// With `#tables` at the end of its address the page opens all tables: to print them, or to search in them.
if (location.hash === "#tables") openTables();
window.addEventListener("scroll", hide, { passive: true });
window.addEventListener("resize", () => {
  for (const state of figures)
    if (state.figure.kind in PLOTS && Math.abs(state.plot.clientWidth - 2 - state.width) > 1) show(state);
});
document.body.dataset.drawn = String(figures.length);
