// What three.js makes of mesh files, one line of JSON for each: `node three_meshes.mjs FILE...`.
// Colours are linear. Pictures are not loaded: that takes a browser.
import fs from "fs";
import { Box3 } from "three";
import { GLTFLoader } from "three/examples/jsm/loaders/GLTFLoader.js";
import { MTLLoader } from "three/examples/jsm/loaders/MTLLoader.js";
import { OBJLoader } from "three/examples/jsm/loaders/OBJLoader.js";
import { PLYLoader } from "three/examples/jsm/loaders/PLYLoader.js";
import { STLLoader } from "three/examples/jsm/loaders/STLLoader.js";

const image = { addEventListener() {}, removeEventListener() {} };
globalThis.document = { createElementNS: () => image };

const text = (path) => fs.readFileSync(path, "utf8");
const bytes = (path) => new Uint8Array(fs.readFileSync(path)).buffer;

function obj(path) {
  const loader = new OBJLoader();
  const library = /^mtllib (.+)$/m.exec(text(path));
  if (library) {
    const folder = path.replace(/[^/]+$/, "");
    loader.setMaterials(new MTLLoader().parse(text(folder + library[1]), folder));
  }
  return loader.parse(text(path)).children[0];
}

const readers = {
  glb: async (path) => (await new GLTFLoader().parseAsync(bytes(path), "")).scene.children[0],
  obj,
  ply: (path) => ({ geometry: new PLYLoader().parse(bytes(path)) }),
  stl: (path) => ({ geometry: new STLLoader().parse(bytes(path)) }),
};

for (const path of process.argv.slice(2)) {
  const { geometry, material } = await readers[path.split(".").pop()](path);
  const { position, color } = geometry.attributes;
  const box = new Box3().setFromBufferAttribute(position);
  const found = {
    low: box.min.toArray(),
    high: box.max.toArray(),
    colors: color ? Array.from({ length: color.count },
      (_, n) => [color.getX(n), color.getY(n), color.getZ(n)]) : [],
    material: material && {
      type: material.type,
      color: material.color.toArray(),
      vertexColors: material.vertexColors,
      specular: material.specular ? material.specular.toArray() : null,
      map: material.map ? material.map.colorSpace : null,
    },
  };
  console.log(JSON.stringify(found));
}
