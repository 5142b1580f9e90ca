package tour

import (
	"fmt"
	"math/rand/v2"
	"net/http"
)

// predict asks the ml service for a price an hour ahead.
func predict() call {
	return call{
		method: http.MethodPost,
		path:   "/api/v1/ml/predict",
		body: map[string]any{
			"symbol":     "BTC-USD",
			"last_price": 64000,
			"features": map[string]any{
				"return_1h": 0.004, "return_24h": 0.02, "volatility_24h": 0.03,
				"volume_ratio": 1.2, "order_imbalance": 0.1, "spread_bps": 4,
			},
		},
	}
}

// detect asks the nlp service for a text's language: each time of another text,
// since pyproxy keeps answers, and would give one of before for a service that is
// dead.
func detect() call {
	return call{
		method: http.MethodPost,
		path:   "/api/v1/nlp/detect",
		body:   map[string]any{"text": fmt.Sprintf("Wo ist der Bahnhof, bitte, und wo Gleis %d?", rand.Uint32())}, //nolint:gosec // makes texts differ, guards nothing
	}
}
