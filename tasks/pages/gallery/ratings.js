"use strict";
// What people say of assets: the tables' ratings, with those of this browser laid over them. These
// are kept in localStorage, one item for each asset, key and person, until the tables have them.
// ratings(store, said): said is {asset id: [[key, value, who, milliseconds], ...]}.
function ratings(store, said) {
  const prefix = `sjc ${store} `, own = new Map(), changed = [];
  let failure = "";
  const read = (name) => { try { return localStorage.getItem(prefix + name); } catch { return null; } };
  const write = (name, text) => {
    try { localStorage.setItem(prefix + name, text); } catch (error) { failure = `not kept: ${error.message}`; }
  };
  const take = (name, text) => {  // an item of localStorage, of this page or another one
    if (!name || !name.startsWith(prefix + "[")) return null;
    const id = JSON.parse(name.slice(prefix.length))[0];
    if (text === null) own.delete(name); else own.set(name, JSON.parse(text));
    return id;
  };
  const same = (a, b) => a[0] === b[0] && a[2] === b[2];  // one person about one thing
  try {
    for (const name of Object.keys(localStorage)) {
      const id = take(name, localStorage.getItem(name));
      if (id === null) continue;
      const mine = own.get(name);
      if ((said[id] || []).some((row) => same(row, mine) && row[3] >= mine[3])) {
        own.delete(name);  // by now it is in the tables
        localStorage.removeItem(name);
      }
    }
  } catch (error) { failure = `nothing is kept: ${error.message}`; }
  const byAsset = new Map();  // ids of own rows' assets -> their rows
  const index = () => {
    byAsset.clear();
    for (const [name, row] of own) {
      const id = JSON.parse(name.slice(prefix.length))[0];
      byAsset.set(id, [...(byAsset.get(id) || []), row]);
    }
  };
  index();
  window.addEventListener("storage", (event) => {
    const id = take(event.key, event.newValue);
    if (id !== null) { index(); for (const tell of changed) tell(id); }
  });
  const all = {
    assets: new Set([...Object.keys(said), ...byAsset.keys()]),
    get who() { return read("who") || ""; },
    set who(name) { write("who", name); },
    get order() { return JSON.parse(read("order") || "[]"); },  // ids as the wall shows them
    set order(ids) { write("order", JSON.stringify(ids)); },
    get unsaved() { return own.size; },
    get failure() { return failure; },
    onChange(tell) { changed.push(tell); },
    rows(id) {
      const mine = byAsset.get(id) || [];
      return [...(said[id] || []).filter((row) => !mine.some((other) => same(row, other))), ...mine];
    },
    summary(id) {  // as the view best_assets has it
      const rows = all.rows(id).filter((row) => row[1] !== null);
      const stars = rows.filter((row) => row[0] === "rating").map((row) => +row[1]);
      const words = rows.filter((row) => row[0] === "label").flatMap((row) => row[1].split(";"));
      return {
        rating: stars.length ? stars.reduce((a, b) => a + b) / stars.length : null,
        rating_count: stars.length,
        rating_spread: stars.length ? Math.max(...stars) - Math.min(...stars) : null,
        labels: [...new Set(words)].sort(),
      };
    },
    mine(id, key) {
      const row = all.rows(id).find((found) => found[0] === key && found[2] === all.who);
      return row ? row[1] : null;
    },
    say(id, key, value) {  // null withdraws
      const row = [key, value, all.who, Date.now()];
      const name = prefix + JSON.stringify([id, key, all.who]);
      own.set(name, row);
      write(name.slice(prefix.length), JSON.stringify(row));
      byAsset.set(id, [...(byAsset.get(id) || []).filter((other) => !same(other, row)), row]);
      for (const tell of changed) tell(id);
    },
    csv() {  // what `sjc annotate` reads
      const cell = (text) => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
      const lines = ["asset_id,key,value,who,when"];
      for (const [id, rows] of byAsset) {
        for (const [key, value, who, when] of rows) {
          lines.push([id, key, value ?? "", who, new Date(when).toISOString()].map(cell).join(","));
        }
      }
      return lines.join("\n") + "\n";
    },
  };
  return all;
}

const STAR_KEYS = [
  ["1 to 5", "rate"], ["0", "withdraw the rating"], ["L", "labels"], ["→ J", "next"],
  ["← K", "previous"], ["↑ ↓", "a row up, down"], ["Enter", "open the asset's page"],
  ["/", "search"], ["E", "export"], ["?", "these keys"],
];

// A bar with stars, labels, name and export for the asset `current()`, and the keys of all these.
// move(name): goes to "next", "previous", "up" or "down"; says whether it could.
function ratingBar(bar, all, current, move) {
  const make = (kind, text, title, act) => {
    const node = document.createElement(kind);
    node.textContent = text;
    if (title) node.title = title;
    if (act) node.addEventListener("click", act);
    return node;
  };
  const dialog = make("dialog"), form = make("form"), question = make("p"), input = make("input");
  form.method = "dialog";
  form.append(question, input, make("button", "OK"));
  dialog.append(form);
  let then = null;
  const ask = (text, value, act) => {
    question.textContent = text;
    input.value = value;
    then = act;
    dialog.showModal();
    input.select();
  };
  form.addEventListener("submit", () => { const act = then; then = null; if (act) act(input.value.trim()); });
  const help = make("dialog");
  help.append(...STAR_KEYS.map(([key, does]) => {
    const line = make("p");
    line.append(make("kbd", key), ` ${does}`);
    return line;
  }), make("p", "Ratings stay in this browser. Export them, and sjc annotate brings the file into the tables."));
  for (const kind of ["click", "keydown"]) {
    help.addEventListener(kind, (event) => { event.stopPropagation(); event.preventDefault(); help.close(); });
  }
  document.body.append(dialog, help);

  const askName = (act) => ask("Your name, under which your ratings are kept:", all.who, (name) => {
    if (name) { all.who = name; show(); act(); }
  });
  const named = (act) => { if (all.who) act(); else askName(act); };
  const rate = (value) => { const id = current(); if (id) named(() => all.say(id, "rating", value)); };
  const label = () => {
    const id = current();
    if (id) named(() => ask("Labels, with ; between:", all.mine(id, "label") || "", (text) => {
      const words = [...new Set(text.split(";").map((word) => word.trim()).filter(Boolean))];
      all.say(id, "label", words.join(";") || null);
    }));
  };
  const save = () => {
    const link = make("a");
    link.href = URL.createObjectURL(new Blob([all.csv()], { type: "text/csv" }));
    link.download = "ratings.csv";
    link.click();
    URL.revokeObjectURL(link.href);
  };
  const stars = [1, 2, 3, 4, 5].map((n) => make("button", "☆", `${n} of 5 (key ${n})`, () => rate(`${n}`)));
  const labels = make("button", "", "Change your labels (key L)", label);
  const name = make("button", "", "Change your name", () => askName(() => {}));
  const exported = make("button", "", "Write a file for sjc annotate (key E)", save);
  const about = make("span"), problem = make("span");
  about.className = "about";
  problem.className = "bad";
  bar.append(...stars, labels, about, problem, name, exported, make("button", "?", "Keys", () => help.showModal()));

  function show() {
    const id = current(), mine = id ? +all.mine(id, "rating") : 0;
    stars.forEach((node, k) => { node.textContent = k < mine ? "★" : "☆"; node.disabled = !id; });
    labels.textContent = (id && all.mine(id, "label")) || "label";
    labels.disabled = !id;
    about.textContent = id ? judged(all.summary(id)) : "→ chooses an asset, ? shows the keys";
    problem.textContent = all.failure;
    name.textContent = all.who ? `as ${all.who}` : "your name";
    exported.textContent = `export ${all.unsaved}`;
    exported.disabled = !all.unsaved;
  }
  const moves = { ArrowRight: "next", j: "next", ArrowLeft: "previous", k: "previous", ArrowUp: "up", ArrowDown: "down" };
  const acts = { l: label, e: () => { if (all.unsaved) save(); }, "?": () => help.showModal(), 0: () => rate(null) };
  for (const n of [1, 2, 3, 4, 5]) acts[n] = () => rate(`${n}`);
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || dialog.open || help.open) return;
    const arrow = event.key.startsWith("Arrow");  // by which the viewer turns the mesh
    if (event.target.closest(arrow ? "input, select, model-viewer" : "input, select")) return;
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (key in acts) acts[key](); else if (!(key in moves) || !move(moves[key])) return;
    event.preventDefault();
  });
  all.onChange(show);
  show();
  return show;
}

function judged({ rating, rating_count, rating_spread, labels }) {
  const parts = [];
  if (rating_count) parts.push(`★ ${+rating.toFixed(1)} (${rating_count})${rating_spread ? `, spread ${rating_spread}` : ""}`);
  if (labels.length) parts.push(labels.join(", "));
  return parts.join(" · ");
}
