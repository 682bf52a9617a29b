// Submits a job: files, the model, and options of the request.

import { callJson, newKey, submit } from "./api.js";
import { chosenFiles, droppedFiles, isNifti } from "./files.js";
import { size } from "./format.js";
import { html, useEffect, useRef, useState } from "./html.js";
import { askBeforeLeaving } from "./leaving.js";
import { ProblemNote } from "./notes.js";
import { usePolled } from "./polling.js";

const FORMATS = {
  "dicom-seg": "DICOM Segmentation (DICOM input)",
  "dicom-labelmap": "DICOM Label Map (DICOM input)",
  nrrd: "3D Slicer segmentation",
  mha: "MetaImage",
};
const TOLERATED = {
  uneven_spacing: "Missing or unevenly spaced slices",
  gantry_tilt: "Tilted gantry",
  unusual_extent: "Unusual size of the scan",
  analyze_orientation: "Analyze file without orientation",
};
const ONE_SCAN = "file";
const MODELS_PERIOD_MS = 5000;

function DropZone({ part, label, files, onFiles }) {
  const [over, setOver] = useState(false);
  const [problem, setProblem] = useState(null);
  function take(given) {
    setProblem(given.length > 0 ? null : { message: "There are no files in it." });
    if (given.length > 0) onFiles(given);
  }
  function drop(event) {
    event.preventDefault();
    setOver(false);
    droppedFiles(event.dataTransfer).then(take, () => setProblem({ message: "The browser cannot read these files." }));
  }
  const choose = (event) => take(chosenFiles(event.currentTarget));
  const total = files.reduce((sum, file) => sum + file.size, 0);
  const what = files.length === 1 ? files[0].name : `${files.length} files`;
  return html`
    <fieldset
      class=${`drop ${over ? "over" : ""}`}
      onDragOver=${(event) => {
        event.preventDefault();
        setOver(true);
      }}
      onDragLeave=${() => setOver(false)}
      onDrop=${drop}
    >
      <legend>${label}</legend>
      <p>
        ${files.length > 0 ? html`<strong>${what}</strong> (${size(total)})` : "Drop a file or a folder here: NIfTI, DICOM, NRRD, MetaImage, zip or tar."}
      </p>
      <label class="button">Choose files<input type="file" multiple data-part=${part} onChange=${choose} /></label>
      <label class="button">Choose a folder<input type="file" webkitdirectory onChange=${choose} /></label>
      ${problem && html`<${ProblemNote} problem=${problem} />`}
    </fieldset>
  `;
}

function Checks({ legend, name, options }) {
  return html`
    <fieldset>
      <legend>${legend}</legend>
      ${Object.entries(options).map(
        ([value, text]) =>
          html`<label class="check"><input type="checkbox" name=${name} value=${value} /> ${text}</label>`,
      )}
    </fieldset>
  `;
}

/**
 * The request of a form, without the places of its files.
 * @param {FormData} form
 * @param {Map<string, File[]>} files
 */
function requestOf(form, files) {
  const channels = [...files.keys()].filter((part) => part !== ONE_SCAN);
  const [name, version] = String(form.get("model")).split("/");
  const viewable = channels.length === 0 && isNifti(files.get(ONE_SCAN) ?? []);
  return {
    model: name,
    model_version: version,
    priority: form.get("priority"),
    output: {
      formats: ["nifti", ...form.getAll("formats")],
      // The viewer reads NIfTI alone.
      ...(viewable ? {} : { scan: true }),
    },
    options: {
      tolerate: form.getAll("tolerate"),
      modality_check: form.has("modality_check"),
      reuse: form.has("reuse"),
    },
  };
}

/** The problem of files that the service would refuse for their size, or null. */
function sizeProblem(files, maxBytes) {
  const total = [...files.values()].flat().reduce((sum, file) => sum + file.size, 0);
  if (total <= maxBytes) return null;
  return { message: `The files have ${size(total)}; the service takes at most ${size(maxBytes)}.` };
}

/** The parts of the form that a model needs, with the names of its scans. */
function partsOf(model) {
  const channels = model?.summary?.channels ?? [];
  return channels.length > 1 ? channels.map(({ name }) => [`channel.${name}`, name]) : [[ONE_SCAN, "Scan"]];
}

function Upload({ share, onStop }) {
  return html`
    <p>
      <span role="status">${share < 1 ? "Uploading" : "The service stores the scan …"}</span>
      ${share < 1 && ` ${Math.floor(100 * share)} %`}
      <progress max="1" value=${share} aria-label="Upload"></progress>
      <button type="button" onClick=${onStop}>Stop</button>
    </p>
  `;
}

function Options() {
  return html`
    <fieldset>
      <legend>Priority</legend>
      <label class="check"><input type="radio" name="priority" value="routine" checked /> routine</label>
      <label class="check"><input type="radio" name="priority" value="urgent" /> urgent</label>
    </fieldset>
    <details>
      <summary>More options</summary>
      <${Checks} legend="Further formats of the mask" name="formats" options=${FORMATS} />
      <${Checks} legend="Accept with a warning" name="tolerate" options=${TOLERATED} />
      <fieldset>
        <legend>Checks</legend>
        <label class="check"><input type="checkbox" name="modality_check" checked /> Refuse scans of another modality</label>
        <label class="check"><input type="checkbox" name="reuse" /> Take an earlier result of the same scan</label>
      </fieldset>
    </details>
  `;
}

/** Sends a form; `sending` is the share that was sent, or null. */
function useSubmission() {
  const [sending, setSending] = useState(null);
  const [problem, setProblem] = useState(null);
  const abort = useRef(/** @type {AbortController | null} */ (null));
  // What is sent again is the same job, as the first one may have arrived.
  const last = useRef({ text: "", key: "" });
  useEffect(() => () => abort.current?.abort(), []);
  async function send(request, files) {
    const text = JSON.stringify([
      request,
      [...files].map(([part, chosen]) => [part, chosen.map((file) => [file.name, file.size, file.lastModified])]),
    ]);
    if (last.current.text !== text) last.current = { text, key: newKey() };
    abort.current = new AbortController();
    setProblem(null);
    setSending(0);
    const release = askBeforeLeaving("Stop the upload?");
    try {
      const job = await submit(request, files, last.current.key, setSending, abort.current.signal);
      location.hash = `#/jobs/${job.id}`;
    } catch (error) {
      if (error.code === "conflict") last.current = { text: "", key: "" };
      setProblem(error);
      setSending(null);
    } finally {
      // Before the change of the address is followed, which is an event.
      release();
    }
  }
  return { sending, problem, send, stop: () => abort.current?.abort() };
}

export function NewJobView({ session }) {
  const [chosen, setChosen] = useState("");
  const [files, setFiles] = useState(/** @type {Map<string, File[]>} */ (new Map()));
  const { sending, problem, send, stop } = useSubmission();
  const { value: models, problem: failure } = usePolled(() => callJson("v1/models"), [], MODELS_PERIOD_MS);
  const keyOf = (model) => `${model.name}/${model.version}`;
  const model = models?.find((each) => keyOf(each) === chosen) ?? models?.[0];
  const parts = partsOf(model);
  const complete = parts.every(([part]) => files.get(part)?.length);
  const given = new Map(parts.map(([part]) => [part, files.get(part) ?? []]));
  const tooLarge = sizeProblem(given, session.max_input_bytes);
  function start(event) {
    event.preventDefault();
    send(requestOf(new FormData(event.currentTarget), given), given);
  }
  return html`
    <form class="narrow" onSubmit=${start}>
      <h1>New job</h1>
      <label>
        Model
        <select name="model" value=${model && keyOf(model)} onChange=${(event) => setChosen(event.currentTarget.value)}>
          ${models?.map((each) => html`<option value=${keyOf(each)}>${each.name} ${each.version}</option>`)}
        </select>
      </label>
      ${models?.length === 0 && html`<p class="hint">No worker has a model.</p>`}
      ${model?.summary && html`<p class="hint">${model.summary.description} ${model.summary.intended_use}</p>`}
      ${parts.map(
        ([part, label]) => html`<${DropZone}
          key=${part}
          part=${part}
          label=${label}
          files=${files.get(part) ?? []}
          onFiles=${(given) => setFiles((all) => new Map(all).set(part, given))}
        />`,
      )}
      <${Options} />
      ${(tooLarge ?? problem ?? failure) && html`<${ProblemNote} problem=${tooLarge ?? problem ?? failure} />`}
      ${
        sending === null
          ? html`<button class="primary" disabled=${!complete || !model || tooLarge}>Submit</button>`
          : html`<${Upload} share=${sending} onStop=${stop} />`
      }
    </form>
  `;
}
