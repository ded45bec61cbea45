"""From a trained model and trial lists, or from score files, to numbers for publication."""

from avspk.extras import require

require("pandas")
