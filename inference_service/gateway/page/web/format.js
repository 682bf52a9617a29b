// Numbers and names as people read them.

export const FINAL_STATES = ["succeeded", "failed", "cancelled"];
export const STATES = ["queued", "running", ...FINAL_STATES];

/**
 * A duration by its largest unit.
 * @param {number} seconds
 */
export function duration(seconds) {
  if (seconds < 1) return `${Math.max(0, seconds).toFixed(2)} s`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86400)} d`;
}

/** @param {string} time In ISO 8601. */
export function age(time) {
  return duration((Date.now() - Date.parse(time)) / 1000);
}

/** @param {string} time In ISO 8601. */
export function localTime(time) {
  return new Date(time).toLocaleString();
}

/** @param {number} bytes */
export function size(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  const units = ["kB", "MB", "GB", "TB"];
  const power = Math.min(units.length, Math.floor(Math.log10(bytes) / 3));
  return `${(bytes / 1000 ** power).toPrecision(3)} ${units[power - 1]}`;
}

/** @param {number | null} value */
export function figure(value) {
  if (value === null) return "–";
  return Math.abs(value) >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toPrecision(3);
}

/**
 * A name of the API as words.
 * @param {string} name
 */
export function words(name) {
  return name.replaceAll("_", " ");
}

/** @param {{request: any, model_name: string | null, model_version: string | null}} job */
export function modelOf(job) {
  const name = job.model_name ?? job.request?.model ?? "–";
  const version = job.model_version ?? job.request?.model_version;
  return version ? `${name} ${version}` : name;
}
