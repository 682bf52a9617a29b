"""nnU-Net's own plans, of which no name leads to Python that is not known."""

from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from inference_service.importers.nnunet.fields import Fields
from inference_service.importers.nnunet.plans import Plans
from inference_service.importers.nnunet.results_folder import PLANS_FILE


class CheckedPlans(PlansManager):  # type: ignore[misc]
    """Takes the place of nnU-Net's plans, which import and call whatever classes and functions a plans.json names.

    Args:
        plans: The content of plans.json, or its path.

    Raises:
        ModelInvalid: A class, a function or a number in it is none that is imported.
    """

    def __init__(self, plans: dict[str, Any] | str) -> None:
        super().__init__(plans)
        self._checked = Plans(Fields(self.plans, PLANS_FILE))

    def get_configuration(self, configuration_name: str) -> ConfigurationManager:
        """Returns a configuration whose network, preprocessor, schemes and resampling are known ones."""
        self._checked.configuration(configuration_name)
        return super().get_configuration(configuration_name)
