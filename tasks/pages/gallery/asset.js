"use strict";
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
