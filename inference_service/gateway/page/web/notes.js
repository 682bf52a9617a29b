// Short messages: refusals, and facts that people should know.

import { html } from "./html.js";

/**
 * A refusal: its code, its sentence and the remedy.
 * @param {{problem: {code?: string, message: string, remedy?: string | null}}} props
 */
export function ProblemNote({ problem }) {
  return html`
    <div class="note failed" role="alert">
      ${problem.code && html`<code>${problem.code}</code>`}
      <p>${problem.message}</p>
      ${problem.remedy && html`<p class="remedy">${problem.remedy}</p>`}
    </div>
  `;
}
