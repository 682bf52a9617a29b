// The jobs as a live table, with the queues and workers above it.

import { callJson, cancel } from "./api.js";
import { age, duration, FINAL_STATES, localTime, modelOf, STATES, words } from "./format.js";
import { html, useState } from "./html.js";
import { ProblemNote } from "./notes.js";
import { usePolled } from "./polling.js";
import { ServiceStrip } from "./service_strip.js";

const PERIOD_MS = 2000;
const PAGE_LENGTH = 25;
const SPANS = { 3600: "the last hour", 86400: "the last day", 604800: "the last week" };

/** @param {{state: string, model: string, span: string}} filter */
function query(filter) {
  const found = new URLSearchParams();
  if (filter.state) found.set("state", filter.state);
  if (filter.model) found.set("model", filter.model);
  if (filter.span) found.set("created_from", new Date(Date.now() - 1000 * Number(filter.span)).toISOString());
  return found;
}

function Choice({ label, value, options, onChange }) {
  return html`
    <label>
      ${label}
      <select value=${value} onChange=${(event) => onChange(event.currentTarget.value)}>
        <option value="">all</option>
        ${options.map(([key, text]) => html`<option value=${key}>${text}</option>`)}
      </select>
    </label>
  `;
}

function Filters({ filter, models, onChange }) {
  const change = (name) => (value) => onChange({ ...filter, [name]: value });
  return html`
    <div class="filters">
      <${Choice} label="State" value=${filter.state} options=${STATES.map((state) => [state, state])} onChange=${change("state")} />
      <${Choice} label="Model" value=${filter.model} options=${models.map((name) => [name, name])} onChange=${change("model")} />
      <${Choice} label="Created in" value=${filter.span} options=${Object.entries(SPANS)} onChange=${change("span")} />
      <a class="button" href=${`v1/results.csv?${query(filter)}`} download>Results as CSV</a>
    </div>
  `;
}

/** What a job does now, or how it has ended. */
function Progress({ job }) {
  if (job.state === "running") {
    const stage = job.stage ? words(job.stage) : "starting";
    return html`<span class="stage">${stage}</span> <progress max="1" value=${job.progress} aria-label=${stage}></progress>`;
  }
  if (job.error_code) return html`<code>${job.error_code}</code>`;
  if (job.started_at && job.finished_at) {
    return html`took ${duration((Date.parse(job.finished_at) - Date.parse(job.started_at)) / 1000)}`;
  }
  return job.queue ? html`in ${job.queue}` : "";
}

export function State({ job }) {
  const text = job.cancel_requested && job.state === "running" ? "cancelling" : job.state;
  return html`<span class=${`state ${job.state}`}>${text}</span>`;
}

function Row({ job, mayCancel, onCancel }) {
  const cancellable = mayCancel && !FINAL_STATES.includes(job.state) && !job.cancel_requested;
  return html`
    <tr>
      <td data-label="Job"><a href=${`#/jobs/${job.id}`}><code>${job.id.slice(0, 8)}</code></a></td>
      <td data-label="State"><${State} job=${job} /></td>
      <td data-label="Model">${modelOf(job)}</td>
      <td data-label="Priority">${job.request?.priority ?? "–"}</td>
      <td data-label="Worker">${job.lease_owner ?? "–"}</td>
      <td data-label="Stage"><${Progress} job=${job} /></td>
      <td data-label="Age"><time datetime=${job.created_at} title=${localTime(job.created_at)}>${age(job.created_at)}</time></td>
      <td class="actions">
        ${cancellable && html`<button aria-label=${`Cancel job ${job.id.slice(0, 8)}`} onClick=${() => onCancel(job)}>Cancel</button>`}
      </td>
    </tr>
  `;
}

function Table({ jobs, mayCancel, onCancel }) {
  return html`
    <table class="jobs">
      <thead>
        <tr>
          ${["Job", "State", "Model", "Priority", "Worker", "Stage", "Age"].map((name) => html`<th scope="col">${name}</th>`)}
          <th scope="col"><span class="unseen">Actions</span></th>
        </tr>
      </thead>
      <tbody>
        ${jobs.map((job) => html`<${Row} key=${job.id} job=${job} mayCancel=${mayCancel} onCancel=${onCancel} />`)}
      </tbody>
    </table>
  `;
}

// Who comes back from a job finds the table as it was.
const remembered = new Map();

function useRemembered(name, first) {
  const [value, setValue] = useState(remembered.get(name) ?? first);
  remembered.set(name, value);
  return [value, setValue];
}

export function JobsView({ session }) {
  const [filter, setFilter] = useRemembered("filter", { state: "", model: "", span: "" });
  const [cursors, setCursors] = useRemembered("cursors", []);
  const [refusal, setRefusal] = useState(null);
  const after = cursors.at(-1);
  const load = () => {
    const asked = query(filter);
    asked.set("limit", String(PAGE_LENGTH));
    if (after) asked.set("after", after);
    return callJson(`v1/jobs?${asked}`);
  };
  const { value, problem, refresh } = usePolled(load, [filter, after], PERIOD_MS);
  const models = usePolled(() => callJson("v1/models"), [], 30000).value ?? [];
  async function ask(job) {
    try {
      await cancel(job.id);
      setRefusal(null);
    } catch (error) {
      setRefusal(error);
    }
    refresh();
  }
  const jobs = value?.jobs ?? [];
  const names = [...new Set([...models.map((model) => model.name), ...(filter.model ? [filter.model] : [])])];
  const show = (changed) => {
    setCursors([]);
    setFilter(changed);
  };
  return html`
    <h1 class="unseen">Jobs</h1>
    <${ServiceStrip} />
    <${Filters} filter=${filter} models=${names} onChange=${show} />
    ${(refusal ?? problem) && html`<${ProblemNote} problem=${refusal ?? problem} />`}
    ${value && jobs.length === 0 && html`<p class="empty">No jobs. ${session.role !== "read" && html`<a href="#/new">Submit one.</a>`}</p>`}
    ${jobs.length > 0 && html`<${Table} jobs=${jobs} mayCancel=${session.role !== "read"} onCancel=${ask} />`}
    <div class="pages">
      ${cursors.length > 0 && html`<button onClick=${() => setCursors(cursors.slice(0, -1))}>Newer</button>`}
      ${value?.next && html`<button onClick=${() => setCursors([...cursors, value.next])}>Older</button>`}
    </div>
  `;
}
