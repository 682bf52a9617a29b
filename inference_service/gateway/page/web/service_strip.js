// How much waits, and who works.

import { callJson } from "./api.js";
import { duration } from "./format.js";
import { html } from "./html.js";
import { usePolled } from "./polling.js";

const PERIOD_MS = 5000;
// A worker reports itself every few seconds.
const SILENT_AFTER_S = 30;

function workerState(worker) {
  if (worker.silent_s > SILENT_AFTER_S) return { state: "failed", text: `silent for ${duration(worker.silent_s)}` };
  if (worker.paused) return { state: "failed", text: `paused: ${worker.paused}` };
  return { state: "succeeded", text: worker.providers[0]?.replace("ExecutionProvider", "") ?? "" };
}

function WorkerNote({ worker }) {
  const { state, text } = workerState(worker);
  return html`<li><span class=${`state ${state}`}>${worker.name}</span> ${text}</li>`;
}

export function ServiceStrip() {
  const queues = usePolled(() => callJson("v1/queues"), [], PERIOD_MS).value;
  const workers = usePolled(() => callJson("v1/workers"), [], PERIOD_MS).value;
  return html`
    <section class="strip" aria-label="Queues and workers">
      <dl>
        <div><dt>Running</dt><dd>${queues?.running_jobs ?? "–"}</dd></div>
        <div><dt>Queued</dt><dd>${queues?.queued_jobs ?? "–"}</dd></div>
        ${Object.entries(queues?.messages ?? {}).map(([name, count]) => html`<div><dt>${name}</dt><dd>${count}</dd></div>`)}
        ${queues && queues.messages === null && html`<div><dt>Redis</dt><dd>does not answer</dd></div>`}
      </dl>
      <ul>
        ${workers?.length === 0 && html`<li><span class="state failed">no worker</span></li>`}
        ${workers?.map((worker) => html`<${WorkerNote} key=${worker.name} worker=${worker} />`)}
      </ul>
    </section>
  `;
}
