package flag_test

import (
	"fmt"
	"time"

	"github.com/tollgate-proxy/tollgate/internal/flag"
)

//nolint:forbidigo // an example shows by printing
func Example() {
	defs, err := flag.Parse("flags.yaml", []byte(`
flags:
  checkout:
    variants: {blue: "#00f", green: "#0f0"}
    defaultVariant: green
    targeting: {if: [{ends_with: [{var: email}, "@example.com"]}, blue, null]}
  ml-v2:
    variants: {"on": true, "off": false}
    defaultVariant: "off"
    tollgate:
      audience: {tiers: [premium, enterprise]}
      rollout: {percentage: 100}
`))
	if err != nil {
		fmt.Println(err)
		return
	}
	set, err := flag.Compile(defs)
	if err != nil {
		fmt.Println(err)
		return
	}
	ann := &flag.Subject{Key: "ann", Tier: "premium", Claims: map[string]any{"email": "ann@example.com"}}
	fmt.Println(string(set.AppendHeader(nil, ann, nil, time.Now())))
	result := set.Evaluate("checkout", ann, time.Now())
	fmt.Println(result.Variant, result.Value, result.Reason)
	// Output:
	// checkout=blue,ml-v2=on
	// blue #00f TARGETING_MATCH
}

//nolint:forbidigo // an example shows by printing
func ExampleParse_faults() {
	_, err := flag.Parse("flags.yaml", []byte(`
flags:
  ml-v2:
    defaultVariant: maybe
    tollgate: {rollout: {percentage: 101}}
`))
	fmt.Println(err)
	// Output:
	// flags.yaml:4: flags.ml-v2.defaultVariant: "maybe": one of the flag's variants [false true]
	// flags.yaml:5: flags.ml-v2.tollgate.rollout.percentage: "101": a number from 0 to 100 in steps of 0.001
}
