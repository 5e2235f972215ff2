"""Published and own weights for any network: where they come from, how their names map, what was loaded."""

from mambaseg.networks.weights.load import WeightsConfig, load_weights
from mambaseg.networks.weights.published import PUBLISHED, PublishedWeights
from mambaseg.networks.weights.report import LoadReport

__all__ = ["PUBLISHED", "LoadReport", "PublishedWeights", "WeightsConfig", "load_weights"]
