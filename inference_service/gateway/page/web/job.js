// One job: its progress while it runs, then its result or the reason why there is none.

import { callJson, cancel, jobPath, Problem } from "./api.js";
import { duration, FINAL_STATES, localTime, modelOf, size, words } from "./format.js";
import { html, useEffect, useState } from "./html.js";
import { State } from "./jobs.js";
import { ProblemNote } from "./notes.js";
import { ResultView } from "./result.js";
import { ServiceStrip } from "./service_strip.js";

const RETRY_MS = 5000;
const ENDED_PERIOD_MS = 15000;
const STAGES = "fetch read model_load preprocess network windows map postprocess report preview write store".split(" ");

/**
 * The row of a job, which follows its events up to the job's end.
 * @param {string} id
 */
function useJob(id) {
  const [job, setJob] = useState(null);
  const [problem, setProblem] = useState(null);
  useEffect(() => {
    let events = /** @type {EventSource | null} */ (null);
    let timer = 0;
    let stopped = false;
    async function load() {
      try {
        const row = await callJson(jobPath(id));
        if (stopped) return;
        setJob(row);
        setProblem(null);
        if (FINAL_STATES.includes(row.state)) unfollow();
        else if (!events) follow();
        // An operator may retry it.
        if (["failed", "cancelled"].includes(row.state)) again(ENDED_PERIOD_MS);
      } catch (error) {
        if (stopped) return;
        setProblem(error);
        if (error.status !== 404) again(RETRY_MS);
      }
    }
    function again(delay) {
      clearTimeout(timer);
      timer = setTimeout(load, delay);
    }
    function unfollow() {
      events?.close();
      events = null;
    }
    function follow() {
      events = new EventSource(`${jobPath(id)}/events`);
      events.addEventListener("transition", load);
      events.addEventListener("progress", (event) => setJob((row) => ({ ...row, ...JSON.parse(event.data) })));
      let losses = 0;
      events.onopen = () => {
        losses = 0;
        setProblem(null);
      };
      events.onerror = () => {
        // The stream of a job that has just ended is lost once.
        losses += 1;
        if (losses > 1 && !stopped) setProblem(new Problem(0));
        // The browser connects again by itself unless it was refused.
        if (events?.readyState !== EventSource.CLOSED || stopped) return;
        events = null;
        again(RETRY_MS);
      };
    }
    load();
    return () => {
      stopped = true;
      clearTimeout(timer);
      unfollow();
    };
  }, [id]);
  return { job, problem, change: (news) => setJob((row) => ({ ...row, ...news })) };
}

/** What the job does now. */
function doing(job) {
  if (job.state === "running") return job.stage ? words(job.stage) : "starting";
  return job.queue ? `waits in the queue ${job.queue}` : "waits";
}

function Running({ job }) {
  return html`
    <p>
      ${doing(job)}
      <progress max="1" value=${job.state === "running" ? job.progress : 0} aria-label="Progress"></progress>
    </p>
  `;
}

function Downloads({ job }) {
  const results = Object.keys(job.result).filter((name) => name !== "bucket");
  return html`
    <section class="panel">
      <h2>Downloads</h2>
      <ul class="downloads">
        ${results.map(
          (name) => html`<li>
            <a href=${`${jobPath(job.id)}/results/${name}`} download>${name}</a>
            ${job.checksums?.[name] && html` <small>${size(job.checksums[name].size_bytes)}</small>`}
          </li>`,
        )}
        ${
          job.request && Object.keys(job.request.input.channels ?? {}).length === 0
            ? html`<li><a href=${`${jobPath(job.id)}/input`} download>the scan as it was sent</a></li>`
            : ""
        }
      </ul>
    </section>
  `;
}

function Timings({ timings }) {
  const place = (stage) => (STAGES.includes(stage) ? STAGES.indexOf(stage) : STAGES.length);
  const entries = Object.entries(timings).sort(([one], [other]) => place(one) - place(other));
  const longest = Math.max(...entries.map(([, seconds]) => seconds));
  return html`
    <section class="panel">
      <h2>Time of each stage</h2>
      <table class="chart">
        <tbody>
          ${entries.map(
            ([stage, seconds]) => html`<tr>
              <th scope="row">${words(stage)}</th>
              <td class="number">${duration(seconds)}</td>
              <td class="space"><div class="bar-of" style=${{ width: `${(100 * seconds) / longest}%` }}></div></td>
            </tr>`,
          )}
        </tbody>
      </table>
    </section>
  `;
}

function Warnings({ warnings }) {
  return html`
    <section class="panel warnings">
      <h2>Warnings</h2>
      ${warnings.map((warning) => html`<div class="note"><code>${warning.code}</code><p>${warning.message}</p></div>`)}
    </section>
  `;
}

function Transitions({ job }) {
  return html`
    <details class="panel history">
      <summary>History</summary>
      <table>
        <tbody>
          ${job.transitions.map(
            (each) => html`<tr>
              <td>${localTime(each.at)}</td>
              <td>${each.from_state ? `${each.from_state} → ` : ""}${each.to_state}</td>
              <td>${each.detail ?? ""}</td>
            </tr>`,
          )}
        </tbody>
      </table>
    </details>
  `;
}

function Head({ job, session, onCancelled, onProblem }) {
  const cancellable = session.role !== "read" && !FINAL_STATES.includes(job.state) && !job.cancel_requested;
  async function ask() {
    try {
      if (await cancel(job.id)) onCancelled();
      onProblem(null);
    } catch (error) {
      onProblem(error);
    }
  }
  const facts = {
    Model: modelOf(job),
    Priority: job.request?.priority,
    Worker: job.lease_owner,
    Providers: job.providers?.map((name) => name.replace("ExecutionProvider", "")).join(", "),
    Created: localTime(job.created_at),
    "Submitted by": job.submitted_by,
  };
  return html`
    <div class="head">
      <h1><${State} job=${job} /> <code>${job.id}</code></h1>
      ${cancellable && html`<button onClick=${ask}>Cancel</button>`}
    </div>
    <dl class="facts inline">
      ${Object.entries(facts).map(([name, value]) => value && html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}
    </dl>
  `;
}

export function JobView({ id, session }) {
  const { job, problem, change } = useJob(id);
  const [refusal, setRefusal] = useState(null);
  if (!job) return problem ? html`<${ProblemNote} problem=${problem} />` : html`<p>Loading …</p>`;
  const error = job.error_code && { code: job.error_code, message: job.error_message ?? "", remedy: job.remedy };
  return html`
    <${Head} job=${job} session=${session} onCancelled=${() => change({ cancel_requested: true })} onProblem=${setRefusal} />
    ${(refusal ?? problem) && html`<${ProblemNote} problem=${refusal ?? problem} />`}
    <p class="unseen" role="status">${job.state}${!FINAL_STATES.includes(job.state) && `: ${doing(job)}`}</p>
    ${!FINAL_STATES.includes(job.state) && html`<${Running} job=${job} />`}
    ${job.state === "queued" && html`<${ServiceStrip} />`}
    ${error && html`<${ProblemNote} problem=${error} />`}
    ${job.state === "succeeded" && job.result && html`<${ResultView} job=${job} />`}
    <div class="panels">
      ${job.warnings?.length > 0 && html`<${Warnings} warnings=${job.warnings} />`}
      ${job.result && html`<${Downloads} job=${job} />`}
      ${job.timings_s && Object.keys(job.timings_s).length > 0 && html`<${Timings} timings=${job.timings_s} />`}
      <${Transitions} job=${job} />
    </div>
  `;
}
