// Files that people drop or choose, with those of dropped folders.

/** @param {string} name */
function isHidden(name) {
  return name.startsWith(".");
}

/**
 * @param {FileSystemDirectoryReader} reader
 * @returns {Promise<FileSystemEntry[]>}
 */
function nextEntries(reader) {
  return new Promise((resolve, reject) => reader.readEntries(resolve, reject));
}

/**
 * The files of an entry and of all folders in it.
 * @param {FileSystemEntry} entry
 * @returns {Promise<File[]>}
 */
async function filesOf(entry) {
  if (isHidden(entry.name)) return [];
  if (entry.isFile) {
    const file = /** @type {FileSystemFileEntry} */ (entry);
    return [await new Promise((resolve, reject) => file.file(resolve, reject))];
  }
  const reader = /** @type {FileSystemDirectoryEntry} */ (entry).createReader();
  const found = [];
  // A reader returns some entries of a folder at a time, and none after the last.
  for (let entries = await nextEntries(reader); entries.length > 0; entries = await nextEntries(reader)) {
    for (const each of entries) found.push(...(await filesOf(each)));
  }
  return found;
}

/**
 * The files of a drop.
 * @param {DataTransfer} transfer
 * @returns {Promise<File[]>}
 */
export async function droppedFiles(transfer) {
  // The items are gone after the first wait.
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry());
  const found = [];
  for (const entry of entries) {
    if (entry) found.push(...(await filesOf(entry)));
  }
  return found;
}

/**
 * The files of an input element, which then is empty: the same ones may be chosen again.
 * @param {HTMLInputElement} input
 */
export function chosenFiles(input) {
  const files = [...(input.files ?? [])];
  input.value = "";
  return files.filter((file) => !(file.webkitRelativePath || file.name).split("/").some(isHidden));
}

/**
 * Whether files are one NIfTI file, which the viewer reads as it is.
 * @param {File[]} files
 */
export function isNifti(files) {
  return files.length === 1 && /\.nii(\.gz)?$/i.test(files[0].name);
}
