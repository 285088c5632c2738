"use strict";
// A wall of assets. Only the cards in sight exist, so that ten thousand scroll as ten do.
const { columns, rows, folder, store, said } = JSON.parse(document.getElementById("data").textContent);
const at = Object.fromEntries(columns.map((column, k) => [column.name, k]));
const metrics = columns.filter((column) => column.kind !== "text");
const texts = rows.map((row) =>
  [row[at.prompt], row[at.asset_id], row[at.entries], row[at.error]].join("\n").toLowerCase());
const WIDTH = 168, HEIGHT = 244, GAP = 12;
const [grid, search, sort, down, status, rated, filters, count, bar, words] =
  ["grid", "search", "sort", "down", "status", "rated", "filters", "count", "bar", "words"]
    .map((id) => document.getElementById(id));
const judgements = ratings(store, said);
const rowOf = new Map(rows.map((row, k) => [row[at.asset_id], k]));
let shown = [], across = 1, chosen = -1;  // the position in shown of the asset that keys rate
const cards = new Map();
const RATED = {
  "any rating": () => true,
  "unrated": (row) => !row[at.rating_count],
  "not rated by me": (row) => judgements.mine(row[at.asset_id], "rating") === null,
  "rated": (row) => row[at.rating_count] > 0,
  "in dispute": (row) => row[at.rating_spread] >= 2,
};

// Filters, order and cards know of a rating at once.
function judge(id) {
  const row = rows[rowOf.get(id)];
  if (row) for (const [name, value] of Object.entries(judgements.summary(id))) row[at[name]] = value;
}

function suggestLabels() {
  const known = new Set(rows.flatMap((row) => row[at.labels]));
  words.replaceChildren(...[...known].sort().map((label) => new Option(label)));
}

function show(value, kind) {
  if (value === null || value === undefined) return "–";
  if (kind === "list") return value.join(", ");
  if (kind === "flag") return value ? "yes" : "no";
  if (kind === "number") return Number.isInteger(value) ? value.toLocaleString("en") : String(+value.toPrecision(4));
  return value;
}

function conditions() {
  return [...filters.children].map((node) => {
    const [metric, test, limit] = node.querySelectorAll("select, input");
    return { k: at[metric.value], name: metric.value, test: test.value, limit: limit.value };
  }).filter((c) => c.limit !== "");
}

function passes(row, c) {
  const value = row[c.k];
  if (value === null || value === undefined) return false;
  if (columns[c.k].kind === "list") return value.includes(c.limit) === (c.test === "has");
  if (columns[c.k].kind === "choice") return (value === c.limit) === (c.test === "=");
  const number = +value, limit = +c.limit;
  return c.test === "≥" ? number >= limit : c.test === "≤" ? number <= limit : number === limit;
}

function update() {
  const parts = search.value.toLowerCase().split(/\s+/).filter(Boolean);
  const wanted = conditions();
  shown = [];
  for (let k = 0; k < rows.length; k++) {
    if (status.value && rows[k][at.status] !== status.value) continue;
    if (!parts.every((part) => texts[k].includes(part))) continue;
    if (!RATED[rated.value](rows[k])) continue;
    if (!wanted.every((c) => passes(rows[k], c))) continue;
    shown.push(k);
  }
  const key = at[sort.value], sign = down.dataset.down === "1" ? -1 : 1;
  shown.sort((a, b) => {
    const [x, y] = [rows[a][key], rows[b][key]];
    if (x === y) return a - b;
    if (x === null || x === undefined) return 1;  // what is not known comes last, either way
    if (y === null || y === undefined) return -1;
    return (x < y ? -1 : 1) * sign;
  });
  count.textContent = `${shown.length.toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
  const state = new URLSearchParams();
  if (search.value) state.set("q", search.value);
  if (status.value) state.set("status", status.value);
  if (rated.selectedIndex > 0) state.set("rated", rated.value);
  state.set("sort", (sign < 0 ? "-" : "") + sort.value);
  for (const c of wanted) state.append("f", `${c.name} ${c.test} ${c.limit}`);
  history.replaceState(null, "", "#" + state);
  for (const card of cards.values()) card.remove();
  cards.clear();
  chosen = -1;
  draw();
  showBar();
}

function draw() {
  across = Math.max(1, Math.floor((grid.clientWidth + GAP) / (WIDTH + GAP)));
  const width = (grid.clientWidth + GAP) / across - GAP;  // at least WIDTH, so that rows are full
  grid.style.height = `${Math.max(1, Math.ceil(shown.length / across)) * (HEIGHT + GAP)}px`;
  grid.firstElementChild.hidden = shown.length > 0;
  const top = window.scrollY - grid.offsetTop;
  const first = Math.max(0, Math.floor(top / (HEIGHT + GAP)) - 1) * across;
  const last = Math.min(shown.length, (Math.ceil((top + window.innerHeight) / (HEIGHT + GAP)) + 1) * across);
  for (const [position, card] of cards) {
    if (position < first || position >= last) { card.remove(); cards.delete(position); }
  }
  for (let position = first; position < last; position++) {
    let card = cards.get(position);
    if (!card) {
      card = make(rows[shown[position]]);
      card.classList.toggle("chosen", position === chosen);
      cards.set(position, card);
      grid.append(card);
    }
    card.style.width = `${width}px`;
    card.style.left = `${(position % across) * (width + GAP)}px`;
    card.style.top = `${Math.floor(position / across) * (HEIGHT + GAP)}px`;
  }
}

function make(row) {
  const card = document.createElement("a");
  card.className = "card";
  card.href = `${folder}/${row[at.asset_id]}/index.html`;
  const picture = document.createElement("div");
  picture.className = "picture";
  if (row[at.status] === "ok") {
    const image = document.createElement("img");
    image.src = `${folder}/${row[at.asset_id]}/thumbnail.webp`;
    image.alt = "";
    picture.append(image);
  } else {
    picture.textContent = [row[at.status], row[at.error_type]].filter(Boolean).join(": ");
  }
  const prompt = document.createElement("div");
  prompt.className = "prompt";
  prompt.dir = "auto";
  prompt.textContent = row[at.prompt];
  const value = document.createElement("div");
  value.className = "value";
  const column = columns[at[sort.value]], text = show(row[at[sort.value]], column.kind);
  // A time says what it is, and has no room for more.
  value.textContent = column.name.endsWith("_at") ? text.slice(0, 16) : `${column.name}: ${text}`;
  value.title = `${column.name}: ${text}`;
  const judgement = document.createElement("div");
  judgement.className = "judged";
  judgement.textContent = judged({ rating: row[at.rating], rating_count: row[at.rating_count],
    rating_spread: row[at.rating_spread], labels: row[at.labels] }) || "☆";
  judgement.title = "Choose this asset to rate it";
  judgement.addEventListener("click", (event) => {
    event.preventDefault();
    event.stopPropagation();
    choose(shown.indexOf(rowOf.get(row[at.asset_id])));
  });
  card.title = row[at.prompt];
  card.append(picture, prompt, value, judgement);
  return card;
}

// Puts the mark on a card and brings it into sight.
function choose(position) {
  cards.get(chosen)?.classList.remove("chosen");
  chosen = position;
  const top = grid.offsetTop + Math.floor(position / across) * (HEIGHT + GAP);
  const [first, last] = [top - grid.offsetTop, top + HEIGHT + bar.offsetHeight + GAP - window.innerHeight];
  if (window.scrollY > first || window.scrollY < last) window.scrollTo(0, window.scrollY > first ? first : last);
  draw();
  const card = cards.get(position);
  card.classList.add("chosen");
  card.focus({ preventScroll: true });
  showBar();
}

function move(name) {
  const step = { next: 1, previous: -1, down: across, up: -across }[name];
  const position = chosen < 0 ? 0 : chosen + step;
  if (position < 0 || position >= shown.length) return false;
  choose(position);
  return true;
}

function addFilter(name, test, limit) {
  const metric = document.createElement("select");
  metric.append(...metrics.map((column) => new Option(column.name)));
  if (name) metric.value = name;
  const how = document.createElement("select");
  const node = document.createElement("span");
  node.className = "filter";
  node.append(metric, how, document.createElement("input"));
  const fit = () => {  // the tests and values that this metric has
    const column = columns[at[metric.value]], chosen = column.kind === "choice";
    const value = document.createElement(chosen ? "select" : "input");
    const tests = chosen ? ["=", "≠"] : column.kind === "list" ? ["has", "lacks"] : ["≥", "≤", "="];
    how.replaceChildren(...tests.map((text) => new Option(text)));
    if (column.kind === "list") {
      value.placeholder = "word";
      if (column.name === "labels") value.setAttribute("list", "words");
    } else if (chosen) {
      value.append(...column.choices.map((text) => new Option(text)));
    } else {
      value.type = "number";
      value.step = "any";
      value.placeholder = column.kind === "flag" ? "1 or 0" : "value";
    }
    value.title = metric.title = column.about;
    node.children[2].replaceWith(value);
    return value;
  };
  metric.addEventListener("input", fit);  // before the filter itself hears of it
  const value = fit();
  if (test) how.value = test;
  if (limit) value.value = limit;
  const gone = document.createElement("button");
  gone.textContent = "×";
  gone.title = "Remove this filter";
  gone.addEventListener("click", () => { node.remove(); update(); });
  node.addEventListener("input", update);
  node.append(gone);
  filters.append(node);
  return value;
}

function turn(isDown) {
  down.dataset.down = isDown ? "1" : "0";
  down.textContent = isDown ? "↓" : "↑";
  down.title = isDown ? "Largest first" : "Smallest first";
}

sort.append(...columns.filter((column) => column.sorts).map((column) => new Option(column.name)));
for (const name of new Set(rows.map((row) => row[at.status]))) status.append(new Option(name));
const state = new URLSearchParams(location.hash.slice(1));
search.value = state.get("q") || "";
status.value = state.get("status") || "";
rated.append(...Object.keys(RATED).map((name) => new Option(name)));
if (state.get("rated") in RATED) rated.value = state.get("rated");
const order = state.get("sort") || "-started_at";
sort.value = order.replace(/^-/, "");
if (!sort.value) sort.value = "started_at";
turn(order.startsWith("-"));
for (const text of state.getAll("f")) {
  const [name, test, ...limit] = text.split(" ");  // a label may have blanks
  if (name in at) addFilter(name, test, limit.join(" "));
}
for (const node of [search, sort, status, rated]) node.addEventListener("input", update);
down.addEventListener("click", () => { turn(down.dataset.down !== "1"); update(); });
document.getElementById("add").addEventListener("click", () => addFilter().focus());
let waiting = false;
for (const event of ["scroll", "resize"]) {
  window.addEventListener(event, () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  }, { passive: true });
}
for (const kind of ["click", "auxclick"]) {
  grid.addEventListener(kind, (event) => {  // the asset's page knows what comes next here
    if (event.target.closest(".card")) judgements.order = shown.map((k) => rows[k][at.asset_id]);
  });
}
document.addEventListener("keydown", (event) => {
  const searching = document.activeElement === search;
  if (event.key === "Escape" && searching) search.blur();
  if (event.key !== "/" || event.target.closest("input, select, dialog")) return;
  event.preventDefault();
  search.focus();
});
for (const id of judgements.assets) judge(id);
suggestLabels();
const showBar = ratingBar(bar, judgements, () => chosen < 0 ? null : rows[shown[chosen]][at.asset_id], move);
judgements.onChange((id) => {
  judge(id);
  const position = shown.indexOf(rowOf.get(id)), card = cards.get(position);
  if (card) card.querySelector(".judged").replaceWith(make(rows[shown[position]]).querySelector(".judged"));
});
document.getElementById("filters").addEventListener("focusin", suggestLabels);
update();
