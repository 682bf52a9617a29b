// Calls of the HTTP API. All addresses are relative, so that a proxy may serve the page below a path.

const NO_ANSWER = "The service does not answer.";
// Answers of a proxy whose gateway does not answer.
const GATEWAY_LOST = [502, 504];
const TOO_MANY_REQUESTS = 429;
const LONGEST_WAIT_S = 15;

/**
 * The sentence of an answer that has none.
 * @param {number} status
 */
function sentenceOf(status) {
  if (status === 0 || GATEWAY_LOST.includes(status)) return NO_ANSWER;
  return `The answer is an error with the status ${status} and without a reason.`;
}

/** A refusal of the API, or a call without an answer. */
export class Problem extends Error {
  /**
   * @param {number} status Status of the answer; 0 where there was none.
   * @param {{code?: string, detail?: string, remedy?: string | null}} [details]
   */
  constructor(status, details = {}) {
    super(details.detail ?? sentenceOf(status));
    this.status = status;
    this.code = details.code ?? "";
    this.remedy = details.remedy ?? null;
  }

  /** Whether the same call may succeed later. */
  get passes() {
    return this.status === 0 || this.status === TOO_MANY_REQUESTS || this.status >= 500;
  }
}

/**
 * @param {number} status
 * @param {string} body
 */
function problemOf(status, body) {
  try {
    return new Problem(status, JSON.parse(body));
  } catch {
    return new Problem(status, {});
  }
}

/**
 * Makes a call, again when its token's limit permits it, and returns the answer.
 * @param {string} path
 * @param {RequestInit} [options]
 */
async function answerTo(path, options) {
  for (;;) {
    const response = await fetch(path, options);
    const wait = response.status === TOO_MANY_REQUESTS ? Number(response.headers.get("Retry-After")) : 0;
    if (!wait || wait > LONGEST_WAIT_S) return response;
    await new Promise((resolve) => setTimeout(resolve, 1000 * wait));
  }
}

/**
 * Makes a call and returns its answer.
 * @param {string} path Relative to the page.
 * @param {RequestInit} [options]
 * @returns {Promise<Response>}
 */
export async function call(path, options) {
  let response;
  try {
    response = await answerTo(path, options);
  } catch {
    throw new Problem(0);
  }
  if (!response.ok) {
    if (response.status === 401 && path !== "v1/session") dispatchEvent(new Event("unauthenticated"));
    throw problemOf(response.status, await response.text().catch(() => ""));
  }
  return response;
}

/**
 * Makes a call and returns its JSON.
 * @param {string} path
 * @param {RequestInit} [options]
 * @returns {Promise<any>}
 */
export async function callJson(path, options) {
  const response = await call(path, options);
  return response.json().catch(lost);
}

/**
 * Downloads an object.
 * @param {string} path
 */
export async function callBytes(path) {
  const response = await call(path);
  return response.arrayBuffer().catch(lost);
}

/**
 * Refuses an answer that breaks off.
 * @returns {never}
 */
function lost() {
  throw new Problem(0);
}

/** @param {string} id */
export function jobPath(id) {
  return `v1/jobs/${encodeURIComponent(id)}`;
}

/**
 * Cancels a job, if the user agrees.
 * @param {string} id
 * @returns {Promise<boolean>} Whether the service was asked.
 */
export async function cancel(id) {
  if (!confirm(`Cancel job ${id.slice(0, 8)}?`)) return false;
  await call(jobPath(id), { method: "DELETE" });
  return true;
}

/**
 * Submits files as a job.
 * @param {object} request The request without the places of its files.
 * @param {Map<string, File[]>} files The files of each part of the form.
 * @param {string} key The same key is the same job, however often it is sent.
 * @param {(share: number) => void} onProgress
 * @param {AbortSignal} signal
 * @returns {Promise<{id: string}>}
 */
export function submit(request, files, key, onProgress, signal) {
  const form = new FormData();
  form.append("request", JSON.stringify(request));
  for (const [part, chosen] of files) {
    for (const file of chosen) {
      form.append(part, file, file.name);
    }
  }
  return new Promise((resolve, reject) => {
    // fetch does not tell how much of a body was sent.
    const sending = new XMLHttpRequest();
    sending.open("POST", "v1/jobs");
    sending.setRequestHeader("Idempotency-Key", key);
    sending.upload.onprogress = (event) => onProgress(event.total ? event.loaded / event.total : 0);
    sending.onload = () => {
      if (sending.status === 200 || sending.status === 201) {
        resolve(JSON.parse(sending.responseText));
      } else {
        reject(problemOf(sending.status, sending.responseText));
      }
    };
    sending.onerror = () => reject(new Problem(0));
    sending.onabort = () => reject(new Problem(0, { code: "aborted", detail: "The upload was stopped." }));
    signal.addEventListener("abort", () => sending.abort());
    sending.send(form);
  });
}

/** A key that no other submission has. */
export function newKey() {
  // crypto.randomUUID is missing where the page comes without TLS from another machine.
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}
