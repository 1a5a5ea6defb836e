"""Where h_s, the vector that a classifier hands to its last linear layer, is read from a model."""

from composer_cmi.features.feature_reader import FeatureReader
from composer_cmi.features.first_token import skip_unread_tokens

__all__ = ['FeatureReader', 'skip_unread_tokens']
