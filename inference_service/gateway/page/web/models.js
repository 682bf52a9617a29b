// The models that jobs may ask for, as cards.

import { callJson } from "./api.js";
import { html } from "./html.js";
import { ProblemNote } from "./notes.js";
import { usePolled } from "./polling.js";

const PERIOD_MS = 30000;

export function Swatch({ colour }) {
  return html`<span class="swatch" style=${{ backgroundColor: colour ? `rgb(${colour.join(" ")})` : "transparent" }}></span>`;
}

function Labels({ labels, count }) {
  return html`
    <details>
      <summary>${count} ${count === 1 ? "label" : "labels"}</summary>
      <ul class="labels">
        ${labels.map((label) => html`<li class="name"><${Swatch} colour=${label.colour} /><span>${label.name}</span></li>`)}
      </ul>
    </details>
  `;
}

/** @param {(number | null)[]} spacing Null where the scan's own is kept. */
function voxels(spacing) {
  if (spacing.every((size) => size === null)) return "as in the scan";
  return `${spacing.map((size) => size ?? "the scan's").join(" × ")} mm`;
}

function Card({ model }) {
  const summary = model.summary ?? {};
  const facts = {
    Modality: summary.modality,
    Scans: summary.channels?.length > 1 && summary.channels.map((channel) => channel.name).join(", "),
    Voxels: summary.spacing_mm && voxels(summary.spacing_mm),
    Licence: summary.licence,
    Workers: model.workers.join(", "),
  };
  return html`
    <article class="card">
      <h2>${model.name} <small>${model.version}</small></h2>
      ${summary.description && html`<p>${summary.description}</p>`}
      ${summary.intended_use && html`<p class="hint">${summary.intended_use}</p>`}
      <dl class="facts">
        ${Object.entries(facts).map(([name, value]) => value && html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
      </dl>
      ${summary.labels && html`<${Labels} labels=${summary.labels} count=${summary.label_count} />`}
    </article>
  `;
}

export function ModelsView() {
  const { value, problem } = usePolled(() => callJson("v1/models"), [], PERIOD_MS);
  return html`
    <h1>Models</h1>
    ${problem && html`<${ProblemNote} problem=${problem} />`}
    ${value?.length === 0 && html`<p class="empty">No worker has a model.</p>`}
    <div class="cards">
      ${value?.map((model) => html`<${Card} key=${`${model.name}/${model.version}/${model.manifest_sha256}`} model=${model} />`)}
    </div>
  `;
}
