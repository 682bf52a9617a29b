// The result of a job: the scan with its mask, and the table of its labels.

import { callBytes, callJson, jobPath } from "./api.js";
import { figure } from "./format.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { Swatch } from "./models.js";
import { ProblemNote } from "./notes.js";
import { canDraw, FIRST_OPACITY, Scene } from "./scene.js";
import { firstWindow, unitOf, windowsFor } from "./windows.js";

const PLANES = {
  planes: "Planes and render",
  axial: "Axial",
  coronal: "Coronal",
  sagittal: "Sagittal",
  render: "Render",
};
const BACKGROUND = 0;
const RETRY_MS = 5000;
// Of a label without a colour, in the report of an earlier version.
const GREY = [160, 160, 160];

/** The path of the scan as NIfTI; null where there is none. */
function scanPath(job, report) {
  if (job.result.scan) return `${jobPath(job.id)}/results/scan`;
  const isOneFile = job.request.input.key && !job.request.input.key.endsWith("/");
  return isOneFile && report.input.kind === "nifti" ? `${jobPath(job.id)}/input` : null;
}

/** Loads the report, and then what it describes into a scene on the canvas. */
function useScene(job, canvas, drawable) {
  const [report, setReport] = useState(null);
  const [scene, setScene] = useState(null);
  const [place, setPlace] = useState(null);
  const [problem, setProblem] = useState(null);
  const [missing, setMissing] = useState("it is not stored in a form that the viewer reads.");
  useEffect(() => {
    let opened = null;
    let stopped = false;
    let timer = 0;
    // The mask is shown without a scan that is gone.
    function withoutScan(error) {
      if (error.passes) throw error;
      setMissing(error.message);
      return null;
    }
    async function load() {
      const found = await callJson(`${jobPath(job.id)}/results/report`);
      // A scan that states no modality was taken for one of the model's.
      const modality = found.input.modality ?? job.model_modality;
      const labels = found.labels
        .filter((label) => label.value !== BACKGROUND)
        .map((label) => ({ ...label, colour: label.colour ?? GREY }));
      if (stopped) return;
      const shown = { ...found, labels, modality };
      setReport(shown);
      setProblem(null);
      if (!drawable) return;
      const path = scanPath(job, found);
      const [mask, scan] = await Promise.all([
        callBytes(`${jobPath(job.id)}/results/mask`),
        path && callBytes(path).catch(withoutScan),
      ]);
      if (stopped) return;
      const firstRange = (ranges) => windowsFor(shown, ranges)[firstWindow(shown)].range;
      const { affine } = found.input;
      opened = await Scene.open(canvas.current, { mask, scan, affine, labels, firstRange, onPlace: setPlace });
      if (stopped) opened.close();
      else setScene(opened);
    }
    function open() {
      load().catch((error) => {
        if (stopped) return;
        setProblem(error);
        if (error.passes) timer = setTimeout(open, RETRY_MS);
      });
    }
    open();
    return () => {
      stopped = true;
      clearTimeout(timer);
      opened?.close();
    };
  }, [job.id]);
  return { report, scene, place, problem, missing };
}

function Place({ place, unit }) {
  if (!place) return html`<p class="place">Loading the images …</p>`;
  const millimetres = place.millimetres.map(Math.round).join(", ");
  return html`
    <p class="place">
      ${place.label ?? "no label"}${place.intensity !== null && `, ${figure(place.intensity)}${unit}`}
      <small> at ${millimetres} mm (right, front, up)</small>
    </p>
  `;
}

function Controls({ scene, report }) {
  const [planes, setPlanes] = useState("planes");
  const [opacity, setOpacity] = useState(FIRST_OPACITY);
  const [window, setWindow] = useState(() => firstWindow(report));
  const windows = scene.hasScan ? windowsFor(report, scene.ranges) : {};
  useEffect(() => scene.showPlanes(planes), [planes]);
  useEffect(() => scene.showOpacity(opacity), [opacity]);
  useEffect(() => {
    if (scene.hasScan) scene.showRange(windows[window].range);
  }, [window]);
  return html`
    <div class="controls">
      <label>
        View
        <select value=${planes} onChange=${(event) => setPlanes(event.currentTarget.value)}>
          ${Object.entries(PLANES).map(([key, text]) => html`<option value=${key}>${text}</option>`)}
        </select>
      </label>
      ${
        scene.hasScan &&
        html`<label>
        Window
        <select value=${window} onChange=${(event) => setWindow(event.currentTarget.value)}>
          ${Object.entries(windows).map(([key, { text }]) => html`<option value=${key}>${text}</option>`)}
        </select>
      </label>`
      }
      <label>
        Opacity
        <input type="range" min="0" max="1" step="0.05" value=${opacity} onInput=${(event) => setOpacity(Number(event.currentTarget.value))} />
      </label>
    </div>
  `;
}

function LabelRow({ label, shown, onShow, onGoTo, drawn }) {
  const name = html`<${Swatch} colour=${label.colour} /><span>${label.name}</span>`;
  const volume = label.voxels > 0 ? figure(label.volume_ml) : "–";
  return html`
    <tr class=${label.voxels > 0 ? "" : "missing"}>
      ${drawn && html`<td><input type="checkbox" aria-label=${`Show ${label.name}`} checked=${shown} onChange=${onShow} /></td>`}
      <th scope="row">
        ${drawn && label.voxels > 0 ? html`<button class="plain name" onClick=${onGoTo}>${name}</button>` : html`<span class="name">${name}</span>`}
      </th>
      <td class="number">${volume}</td>
      <td class="number">${figure(label.intensity_mean)}</td>
      <td class="number">${figure(label.intensity_std)}</td>
    </tr>
  `;
}

function LabelTable({ labels, unit, scene }) {
  const [hidden, setHidden] = useState(new Set());
  const toggle = (value) => {
    const changed = new Set(hidden);
    if (!changed.delete(value)) changed.add(value);
    setHidden(changed);
  };
  useEffect(() => {
    scene?.showLabels(new Set(labels.map((label) => label.value).filter((value) => !hidden.has(value))));
  }, [hidden, scene]);
  return html`
    <section class="panel labels-panel">
      <div class="head">
        <h2>Labels</h2>
        ${
          scene &&
          html`<span>
          <button class="plain" onClick=${() => setHidden(new Set())}>all</button>
          <button class="plain" onClick=${() => setHidden(new Set(labels.map((label) => label.value)))}>none</button>
        </span>`
        }
      </div>
      <div class="scroll">
        <table>
          <thead>
            <tr>
              ${scene && html`<th scope="col"><span class="unseen">Shown</span></th>`}
              <th scope="col">Label</th>
              <th scope="col" class="number">ml</th>
              <th scope="col" class="number">mean${unit}</th>
              <th scope="col" class="number">SD</th>
            </tr>
          </thead>
          <tbody>
            ${labels.map(
              (label) => html`<${LabelRow}
                key=${label.value}
                label=${label}
                drawn=${scene !== null}
                shown=${!hidden.has(label.value)}
                onShow=${() => toggle(label.value)}
                onGoTo=${() => scene.goTo(label)}
              />`,
            )}
          </tbody>
        </table>
      </div>
    </section>
  `;
}

function Preview({ job }) {
  return html`
    <p class="hint">This browser has no WebGL 2, which the viewer needs. Here is the preview.</p>
    <img class="preview" src=${`${jobPath(job.id)}/results/preview`} alt="Planes of the scan with its mask" />
  `;
}

export function ResultView({ job }) {
  const canvas = useRef(null);
  const [drawable] = useState(canDraw);
  const { report, scene, place, problem, missing } = useScene(job, canvas, drawable);
  const unit = report ? unitOf(report) : "";
  const viewer = html`
    <div class="canvas"><canvas ref=${canvas} aria-label="Planes and render of the scan with its mask"></canvas></div>
    <${Place} place=${place} unit=${unit} />
    ${scene && html`<${Controls} scene=${scene} report=${report} />`}
    ${scene && !scene.hasScan && html`<p class="hint">The scan is not shown: ${missing}</p>`}
  `;
  return html`
    ${problem && html`<${ProblemNote} problem=${problem} />`}
    <div class="result">
      ${!problem && html`<section class="viewer" aria-label="Scan and mask">${drawable ? viewer : html`<${Preview} job=${job} />`}</section>`}
      ${report && html`<${LabelTable} labels=${report.labels} unit=${unit} scene=${scene} />`}
    </div>
  `;
}
