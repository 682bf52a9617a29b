// The scan and its mask in NiiVue, which draws on a canvas. The one place that knows NiiVue.

const NIFTI_SIZES = [348, 540];
// Planes that clip the render: depth, azimuth, elevation. The mask is not clipped, and so is seen without the scan.
const BEHIND_THE_SCAN = [-1, 0, 0];
const NOWHERE = [2, 0, 0];
const MAX_COSINE = 0.001;

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
 * @typedef {object} Label
 * @property {number} value
 * @property {string} name
 * @property {[number, number, number]} colour
 * @property {[number, number][] | null} bounding_box
 * @property {{ras: [number, number, number]} | null} centroid_mm
 */

export class Scene {
  /**
   * @param {any} viewer NiiVue with the scan, if there is one, below the mask.
   * @param {Label[]} labels
   */
  constructor(viewer, labels) {
    this.viewer = viewer;
    this.labels = labels;
  }

  /**
   * Opens a scan and its mask on a canvas.
   * @param {HTMLCanvasElement} canvas
   * @param {object} content
   * @param {ArrayBuffer | null} content.scan
   * @param {ArrayBuffer} content.mask
   * @param {number[][]} content.affine Of both, from voxel indices to RAS+ in mm.
   * @param {Label[]} content.labels
   * @param {(place: object) => void} content.onPlace
   */
  static async open(canvas, { scan, mask, affine, labels, onPlace }) {
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
    const scene = new Scene(viewer, labels);
    try {
      await viewer.attachToCanvas(canvas);
      await scene.#load(scan, mask);
      scene.#place(affine);
    } catch (error) {
      scene.close();
      throw error;
    }
    viewer.onLocationChange = (location) => onPlace(scene.#describe(location));
    viewer.setClipPlane(scene.hasScan ? BEHIND_THE_SCAN : NOWHERE);
    scene.showLabels(new Set(labels.map((label) => label.value)));
    scene.showPlanes("planes");
    viewer.createOnLocationChange();
    return scene;
  }

  /**
   * @param {ArrayBuffer | null} scan
   * @param {ArrayBuffer} mask
   */
  async #load(scan, mask) {
    const name = scan && niftiName(scan);
    // NiiVue does not know all types of values, and a packed file may be an archive.
    if (name) await this.viewer.loadFromArrayBuffer(scan, name).catch(() => {});
    await this.viewer.loadFromArrayBuffer(mask, niftiName(mask) ?? "image.nii.gz");
  }

  /**
   * Places the images as the worker has read them: headers may contradict themselves, or have another unit.
   * @param {number[][]} affine
   */
  #place(affine) {
    for (const volume of this.viewer.volumes) {
      volume.hdr.pixDims.splice(1, 3, ...directions(affine).map((direction) => Math.hypot(...direction)));
      volume.setAffine(affine);
    }
    this.viewer.updateGLVolume();
  }

  get hasScan() {
    return this.viewer.volumes.length > 1;
  }

  get #mask() {
    return this.viewer.volumes.at(-1);
  }

  /** The intensities that NiiVue shows of its own accord, and those of the whole scan. */
  get ranges() {
    const scan = this.viewer.volumes[0];
    return { automatic: [scan.robust_min, scan.robust_max], all: [scan.global_min, scan.global_max] };
  }

  #describe({ mm, values }) {
    const value = this.#mask && Math.round(values.at(-1).value);
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
    const colours = [{ value: 0, colour: [0, 0, 0] }, ...this.labels];
    this.#mask.setColormapLabel({
      R: colours.map(({ colour }) => colour[0]),
      G: colours.map(({ colour }) => colour[1]),
      B: colours.map(({ colour }) => colour[2]),
      A: colours.map(({ value }) => (shown.has(value) ? 255 : 0)),
      I: colours.map(({ value }) => value),
      labels: colours.map(() => ""),
    });
    this.viewer.updateGLVolume();
  }

  /** @param {number} opacity Of the mask, 0…1. */
  showOpacity(opacity) {
    this.viewer.setOpacity(this.viewer.volumes.length - 1, opacity);
  }

  /** @param {[number, number]} range Intensities that are shown black and white. */
  showRange([low, high]) {
    if (!this.hasScan) return;
    Object.assign(this.viewer.volumes[0], { cal_min: low, cal_max: high });
    this.viewer.updateGLVolume();
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
    const { img, hdr } = this.#mask;
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
