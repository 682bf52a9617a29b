// Intensity windows by modality.

// In HU; the first three are those of the preview.
const CT_RANGES = {
  soft_tissue: { text: "Soft tissue", range: [-160, 240] },
  lung: { text: "Lung", range: [-1350, 150] },
  bone: { text: "Bone", range: [-500, 1300] },
  brain: { text: "Brain", range: [0, 80] },
  vessels: { text: "Vessels with contrast", range: [-100, 500] },
};
// Means of labels, in HU: air does not count, lung is below, bone above.
const AIR_HU = -950;
const LUNG_HU = -400;
const BONE_HU = 250;

function isCt(report) {
  return report.modality === "CT";
}

/** The unit of the scan's values, as it follows a number. */
export function unitOf(report) {
  return isCt(report) ? " HU" : "";
}

/**
 * The windows to choose from.
 * @param {object} report
 * @param {{automatic: number[], all: number[]}} ranges Of the scan's own values.
 */
export function windowsFor(report, { automatic, all }) {
  return {
    ...(isCt(report) ? CT_RANGES : {}),
    automatic: { text: "Automatic", range: automatic },
    all: { text: "All values", range: all },
  };
}

/** The window to begin with: in CT that of the tissue that most segmented voxels are of, as in the preview. */
export function firstWindow(report) {
  if (!isCt(report)) return "automatic";
  const tissue = report.labels.filter((label) => label.voxels > 0 && label.intensity_mean > AIR_HU);
  const voxels = (labels) => labels.reduce((sum, label) => sum + label.voxels, 0);
  const half = voxels(tissue) / 2;
  if (voxels(tissue.filter((label) => label.intensity_mean < LUNG_HU)) > half) return "lung";
  if (voxels(tissue.filter((label) => label.intensity_mean > BONE_HU)) > half) return "bone";
  return "soft_tissue";
}
