"""From a trained model and trial lists, or from score files, to numbers that can be published."""

from avspk.extras import require

require("pandas")
