// Pages opened as files may not fetch: there the mesh comes as a script that holds it.
const viewer = document.querySelector("model-viewer");
if (viewer && location.protocol === "file:") {
  const script = document.createElement("script");
  script.src = "mesh.js";
  script.onload = () => { viewer.src = window.MESH; };
  document.head.append(script);
} else if (viewer) {
  viewer.src = "mesh.glb";
}

const { store, id, said } = JSON.parse(document.getElementById("data").textContent);
const judgements = ratings(store, { [id]: said });
const order = judgements.order, place = order.indexOf(id);
// Some browsers keep a storage for each file: there the wall would never hear of a rating.
if (order.length || location.protocol !== "file:") {
  ratingBar(document.getElementById("bar"), judgements, () => id, (name) => {
    const next = place < 0 ? null : order[place + { next: 1, previous: -1 }[name]];
    if (next) location.href = `../${next}/index.html`;
    return Boolean(next);
  });
}
