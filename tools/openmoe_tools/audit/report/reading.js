// How pointer and arrow keys read values: a note beside the mark, and by keys a word to those who listen.

const tip = document.getElementById("tip");
const heard = document.getElementById("said");

function hide() {
  tip.hidden = true;
  for (const one of document.querySelectorAll(".cursor")) one.remove();
  for (const one of document.querySelectorAll(".pointed")) one.classList.remove("pointed");
}

function point(state, mark, aloud) {
  hide();
  const told = mark.lines().map(spelt);
  if (mark.node) mark.node.classList.add("pointed");
  else if (mark.w && mark.h < 100 && mark.w < 200)
    state.svg.append(
      draw("rect", {
        x: px(mark.x - mark.w / 2),
        y: px(mark.y - mark.h / 2),
        width: px(mark.w - 1),
        height: px(mark.h - 1),
        class: "cursor",
      }),
    );
  else state.svg.append(draw("circle", { cx: px(mark.x), cy: px(mark.y), r: 6, class: "cursor" }));
  tip.replaceChildren(...told.map((one) => make("div", {}, one)));
  tip.hidden = false;
  const sheet = (mark.node || state.svg).getBoundingClientRect();
  const [x, y] = mark.node ? [sheet.left, sheet.bottom] : [sheet.left + mark.x, sheet.top + mark.y];
  const [w, h] = [tip.offsetWidth, tip.offsetHeight];
  const above = y - h - 14;
  tip.style.left = `${Math.max(4, Math.min(x + 12, document.documentElement.clientWidth - w - 4))}px`;
  tip.style.top = `${above > 4 ? above : y + 14}px`;
  if (aloud) heard.textContent = told.join(", ");
}

function nearest(state, event) {
  if (!state.svg) return state.marks.flat().find((one) => one.node.contains(event.target));
  const sheet = state.svg.getBoundingClientRect();
  const [x, y] = [event.clientX - sheet.left, event.clientY - sheet.top];
  let [best, least] = [null, 30 ** 2];
  for (const one of state.marks.flat()) {
    if (!one) continue;
    const [a, b] = [
      Math.max(Math.abs(one.x - x) - (one.w || 0) / 2, 0),
      Math.max(Math.abs(one.y - y) - (one.h || 0) / 2, 0),
    ];
    if (a * a + b * b < least) [best, least] = [one, a * a + b * b];
  }
  return best;
}

const MOVES = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] };

// The cursor goes to the next known value in a direction; of one row, or one column, every arrow goes along it.
function step(state, key) {
  const rows = state.marks;
  let [i, j] = MOVES[key];
  if (rows.length === 1) [i, j] = [0, i + j];
  else if (rows.every((row) => row.length < 2)) [i, j] = [i + j, 0];
  let at = state.cursor;
  if (at) {
    do at = [at[0] + i, at[1] + j];
    while (rows[at[0]] && at[1] in rows[at[0]] && !rows[at[0]][at[1]]);
  } else {
    const row = rows.findIndex((one) => one.some(Boolean));
    at = [row, rows[row]?.findIndex(Boolean)];
  }
  const mark = rows[at[0]]?.[at[1]];
  if (!mark) return;
  state.cursor = at;
  if (!mark.node) state.plot.scrollLeft = mark.x - state.plot.clientWidth / 2;
  point(state, mark, true);
}

function listen(state) {
  const over = (event) => {
    const mark = nearest(state, event);
    if (mark) point(state, mark, false);
    else hide();
  };
  if (state.figure.kind === "table" || state.figure.kind === "cards") return;
  state.plot.addEventListener("pointermove", over);
  state.plot.addEventListener("pointerdown", over);
  state.plot.addEventListener("pointerleave", hide);
  state.plot.addEventListener("focusout", hide);
  state.plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    if (!(event.key in MOVES) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    step(state, event.key);
  });
}
