"""From a trained model and trial lists, or from score files, to numbers for publication."""

from avspk.common.extras import require

require("pandas")
