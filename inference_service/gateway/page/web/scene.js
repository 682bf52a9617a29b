// The scan and its mask in NiiVue, which draws on a canvas. The one place that knows NiiVue.

const NIFTI_SIZES = [348, 540];
// Planes that clip the render: depth, azimuth, elevation. The mask is not clipped, and so is seen without the scan.
const BEHIND_THE_SCAN = [-1, 0, 0];
const NOWHERE = [2, 0, 0];
const MAX_COSINE = 0.001;
/** The mask's opacity to begin with, 0…1. */
export const FIRST_OPACITY = 0.4;

/** Whether the browser can draw in three dimensions. */
export function canDraw() {
  const context = document.createElement("canvas").getContext("webgl2");
  context?.getExtension("WEBGL_lose_context")?.loseContext();
  return context !== null;
}

/**
 * The file name by which NiiVue reads a NIfTI file; null for a file of another format.
 * @param {ArrayBuffer} content
 */
function niftiName(content) {
  if (content.byteLength < 4) return null;
  const head = new DataView(content);
  if (head.getUint16(0) === 0x1f8b) return "image.nii.gz";
  const isNifti = NIFTI_SIZES.some((size) => head.getInt32(0, true) === size || head.getInt32(0, false) === size);
  return isNifti ? "image.nii" : null;
}

/**
 * The steps in mm along the three axes of voxels.
 * @param {number[][]} affine
 */
function directions(affine) {
  return [0, 1, 2].map((axis) => affine.slice(0, 3).map((row) => row[axis]));
}

/**
 * Whether axes of voxels are not at right angles, by more than rounding.
 * @param {number[][]} affine
 */
function isSheared(affine) {
  const [i, j, k] = directions(affine).map((direction) => direction.map((each) => each / Math.hypot(...direction)));
  const cosine = (one, other) => Math.abs(one.reduce((sum, each, axis) => sum + each * other[axis], 0));
  return Math.max(cosine(i, j), cosine(j, k), cosine(k, i)) > MAX_COSINE;
}

/**
 * Reads an image, and places it as the worker has read it: headers may contradict themselves, or have another unit.
 * @param {ArrayBuffer} content
 * @param {string} name
 * @param {number[][]} affine
 */
async function read(content, name, affine) {
  const image = await globalThis.niivue.NVImage.loadFromUrl({ url: content, name });
  image.hdr.pixDims.splice(1, 3, ...directions(affine).map((direction) => Math.hypot(...direction)));
  image.setAffine(affine);
  return image;
}

/**
 * @typedef {object} Ranges
 * @property {number[]} automatic What NiiVue shows of its own accord.
 * @property {number[]} all
 */

/**
 * @typedef {object} Label
 * @property {number} value
 * @property {string} name
 * @property {[number, number, number]} colour
 * @property {[number, number][] | null} bounding_box
 * @property {{ras: [number, number, number]} | null} centroid_mm
 */

export class Scene {
  /**
   * @param {any} viewer NiiVue.
   * @param {any} scan An image, or null.
   * @param {any} mask An image on the same grid.
   * @param {Label[]} labels
   */
  constructor(viewer, scan, mask, labels) {
    this.viewer = viewer;
    this.scan = scan;
    this.mask = mask;
    this.labels = labels;
    this.alphas = /** @type {number[]} */ ([]);
  }

  /**
   * Opens a scan and its mask on a canvas.
   * @param {HTMLCanvasElement} canvas
   * @param {object} content
   * @param {ArrayBuffer | null} content.scan
   * @param {ArrayBuffer} content.mask
   * @param {number[][]} content.affine Of both, from voxel indices to RAS+ in mm.
   * @param {Label[]} content.labels
   * @param {(ranges: Ranges) => number[]} content.firstRange Chooses the intensities to begin with.
   * @param {(place: object) => void} content.onPlace
   */
  static async open(canvas, { scan, mask, affine, labels, firstRange, onPlace }) {
    const viewer = new globalThis.niivue.Niivue({
      backColor: [0.063, 0.078, 0.094, 1],
      clipPlaneColor: [0, 0, 0, 0],
      crosshairColor: [1, 1, 1, 0.6],
      crosshairWidth: 0.3,
      crosshairWidthUnit: "percent",
      dragAndDropEnabled: false,
      fontColor: [0.9, 0.9, 0.9, 1],
      fontMinPx: 14,
      isClipAllVolumes: false,
      isRadiologicalConvention: true,
      isSliceMM: isSheared(affine),
      loadingText: "",
      logLevel: "error",
      multiplanarForceRender: true,
      // Of its own accord, NiiVue makes three planes as large as they can be, and then leaves less room for four pictures.
      multiplanarLayout: globalThis.niivue.MULTIPLANAR_TYPE.GRID,
      multiplanarPadPixels: 10,
      scrollRequiresFocus: true,
      showAllOrientationMarkers: true,
    });
    const name = scan && niftiName(scan);
    // NiiVue does not know all types of values, and a packed file may be an archive.
    const scanImage = name ? await read(scan, name, affine).catch(() => null) : null;
    const maskImage = await read(mask, niftiName(mask) ?? "image.nii.gz", affine);
    const scene = new Scene(viewer, scanImage, maskImage, labels);
    try {
      await viewer.attachToCanvas(canvas);
      scene.#addImages(firstRange);
    } catch (error) {
      scene.close();
      throw error;
    }
    viewer.onLocationChange = (location) => onPlace(scene.#describe(location));
    viewer.setClipPlane(scene.hasScan ? BEHIND_THE_SCAN : NOWHERE);
    scene.showPlanes("planes");
    viewer.createOnLocationChange();
    return scene;
  }

  /**
   * Adds the images as they are to be seen first: each change of an added image costs seconds without a graphics card.
   * @param {(ranges: Ranges) => number[]} firstRange
   */
  #addImages(firstRange) {
    this.mask.opacity = FIRST_OPACITY;
    this.#colour(new Set(this.labels.map((label) => label.value)));
    if (this.scan) {
      this.#narrow(firstRange(this.ranges));
      this.viewer.addVolume(this.scan);
    }
    this.viewer.addVolume(this.mask);
  }

  get hasScan() {
    return this.scan !== null;
  }

  /** @returns {Ranges} */
  get ranges() {
    const { robust_min, robust_max, global_min, global_max } = this.scan;
    return { automatic: [robust_min, robust_max], all: [global_min, global_max] };
  }

  #describe({ mm, values }) {
    const value = Math.round(values.at(-1).value);
    return {
      millimetres: [...mm].slice(0, 3),
      intensity: this.hasScan ? values[0].value : null,
      label: this.labels.find((label) => label.value === value)?.name ?? null,
    };
  }

  /**
   * Shows some labels and hides the others.
   * @param {Set<number>} shown Values of labels.
   */
  showLabels(shown) {
    if (this.#colour(shown)) this.viewer.updateGLVolume();
  }

  /** @param {number} opacity Of the mask, 0…1. */
  showOpacity(opacity) {
    if (this.mask.opacity === opacity) return;
    this.mask.opacity = opacity;
    this.viewer.updateGLVolume();
  }

  /** @param {number[]} range Intensities that are shown black and white. */
  showRange(range) {
    if (this.#narrow(range)) this.viewer.updateGLVolume();
  }

  /**
   * Gives labels their colours and hides the others, and tells whether that is a change.
   * @param {Set<number>} shown
   */
  #colour(shown) {
    const colours = [{ value: 0, colour: [0, 0, 0] }, ...this.labels];
    const alphas = colours.map(({ value }) => (shown.has(value) ? 255 : 0));
    if (String(alphas) === String(this.alphas)) return false;
    this.alphas = alphas;
    this.mask.setColormapLabel({
      R: colours.map(({ colour }) => colour[0]),
      G: colours.map(({ colour }) => colour[1]),
      B: colours.map(({ colour }) => colour[2]),
      A: alphas,
      I: colours.map(({ value }) => value),
      labels: colours.map(() => ""),
    });
    return true;
  }

  /**
   * Narrows the scan's intensities to a range, and tells whether that is a change.
   * @param {number[]} range
   */
  #narrow([low, high]) {
    const { scan } = this;
    if (scan.cal_min === low && scan.cal_max === high) return false;
    Object.assign(scan, { cal_min: low, cal_max: high });
    return true;
  }

  /** @param {"planes" | "axial" | "coronal" | "sagittal" | "render"} planes */
  showPlanes(planes) {
    const { viewer } = this;
    const types = {
      axial: viewer.sliceTypeAxial,
      coronal: viewer.sliceTypeCoronal,
      sagittal: viewer.sliceTypeSagittal,
      render: viewer.sliceTypeRender,
      planes: viewer.sliceTypeMultiplanar,
    };
    viewer.setSliceType(types[planes]);
  }

  /**
   * Moves the crosshair to the voxel of a label that is nearest to its centroid.
   * @param {Label} label
   */
  goTo(label) {
    const place = this.#nearestVoxel(label);
    if (!place) return;
    this.viewer.scene.crosshairPos = this.viewer.mm2frac(place, 0, true);
    this.viewer.drawScene();
    this.viewer.createOnLocationChange();
  }

  /**
   * The centre, in mm, of the voxel of a label that is nearest to the label's centroid.
   * @param {Label} label
   */
  #nearestVoxel({ value, bounding_box: box, centroid_mm: centroid }) {
    if (!box || !centroid) return null;
    const { img, hdr } = this.mask;
    const [, columns, rows] = hdr.dims;
    const axes = hdr.affine.slice(0, 3);
    const placeOf = (i, j, k) => axes.map((axis) => axis[0] * i + axis[1] * j + axis[2] * k + axis[3]);
    const steps = axes.map((axis) => axis[0]);
    let nearest = null;
    let least = Number.POSITIVE_INFINITY;
    for (let k = box[2][0]; k < box[2][1]; k++) {
      for (let j = box[1][0]; j < box[1][1]; j++) {
        const start = (k * rows + j) * columns;
        const [x, y, z] = placeOf(0, j, k).map((each, axis) => each - centroid.ras[axis]);
        for (let i = box[0][0]; i < box[0][1]; i++) {
          if (img[start + i] !== value) continue;
          const distance = (x + steps[0] * i) ** 2 + (y + steps[1] * i) ** 2 + (z + steps[2] * i) ** 2;
          if (distance < least) {
            least = distance;
            nearest = [i, j, k];
          }
        }
      }
    }
    return nearest && placeOf(...nearest);
  }

  close() {
    this.viewer.cleanup();
    // The memory of the graphics card is freed at once; browsers bound the number of contexts.
    this.viewer.gl?.getExtension("WEBGL_lose_context")?.loseContext();
  }
}
