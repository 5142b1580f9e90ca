package flag

import "time"

// testTime is the time of evaluations whose time does not matter.
var testTime = time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
