package flag

import (
	"errors"
	"fmt"
	"strings"
)

// Patch is a change as an operator thinks of it. At least one member is set.
type Patch struct {
	// State is "on" (everyone gets the on variant, whatever the rules say),
	// "off" (killed: everyone gets the off variant) or "auto" (the rules
	// decide).
	State string
	// Variant serves this variant to everyone or, with Rollout, to those in
	// the roll-out.
	Variant string
	// Rollout is the percentage of the audience; it also takes back "on" and
	// "off".
	Rollout *Percentage
	// Targets change whom the flag means; without the members above, nothing
	// else.
	Targets Targets
}

// ErrPatch: the patch contradicts itself, or does not fit the flag.
var ErrPatch = errors.New("change does not fit")

// Apply changes the definition. Audience, users, targeting and everything else
// that the patch does not name stay, so that "auto" brings them back.
func (d *Definition) Apply(p Patch) error {
	if _, ok := d.Variants[p.Variant]; p.Variant != "" && !ok {
		return fmt.Errorf("%w: the flag has no variant %q", ErrPatch, p.Variant)
	}
	if err := d.target(&p.Targets); err != nil {
		return fmt.Errorf("%w: %w", ErrPatch, err)
	}
	x := &d.Extension
	switch p.State {
	case "":
		switch {
		case p.Variant != "" || p.Rollout != nil:
		case p.Targets.none():
			return fmt.Errorf("%w: it names neither state, variant, rollout, users, tiers nor roles", ErrPatch)
		default:
			return nil
		}
	case "on":
	case "off", "auto":
		if p.Variant != "" || p.Rollout != nil {
			return fmt.Errorf("%w: %q comes without variant and rollout", ErrPatch, p.State)
		}
	default:
		return fmt.Errorf("%w: state %q is not on, off or auto", ErrPatch, p.State)
	}
	d.State = Enabled
	x.Killed, x.Force = p.State == "off", ""
	switch {
	case p.Rollout != nil:
		d.rollOut(*p.Rollout, p.Variant)
		if p.Variant == "" && len(x.Rollout.Variants) == 0 && x.Rollout.Variant == "" && d.OnVariant() == "" {
			return fmt.Errorf("%w: the flag is not boolean, so the roll-out must name a variant", ErrPatch)
		}
	case p.Variant != "":
		x.Force = p.Variant
	case p.State == "on":
		if x.Force = d.OnVariant(); x.Force == "" {
			return fmt.Errorf("%w: the flag is not boolean and names no variant for %q; name a variant", ErrPatch, p.State)
		}
	}
	return nil
}

// rollOut sets the percentage, in a copy: the definition may be in use.
func (d *Definition) rollOut(p Percentage, variant string) {
	next := Rollout{}
	if d.Extension.Rollout != nil {
		next = *d.Extension.Rollout
	}
	next.Percentage, next.Progressive = p, nil
	if variant != "" {
		next.Variant, next.Variants = variant, nil
	}
	d.Extension.Rollout = &next
}

// Summary says in a few words what the flag does now, such as
// "75% of tiers premium, enterprise".
func (d *Definition) Summary() string {
	x := &d.Extension
	switch {
	case d.State == Disabled:
		return "disabled"
	case x.Killed:
		return "off for everyone (killed)"
	case x.Force != "":
		return d.shown(x.Force) + " for everyone"
	}
	var parts []string
	if o := x.Rollout; o != nil {
		percentage := o.Percentage.String() + "%"
		if o.Progressive != nil {
			percentage = o.Progressive.Start.String() + "% to " + o.Progressive.End.String() + "%"
		}
		parts = append(parts, percentage)
	}
	if len(d.Targeting) > 0 {
		parts = append(parts, "targeting")
	}
	text := strings.Join(parts, ", ")
	if text == "" {
		if d.DefaultVariant == "" {
			return "the caller's default"
		}
		return d.shown(d.DefaultVariant) + " for everyone"
	}
	var of []string
	if len(x.Audience.Tiers) > 0 {
		of = append(of, "tiers "+strings.Join(x.Audience.Tiers, ", "))
	}
	if len(x.Audience.Roles) > 0 {
		of = append(of, "roles "+strings.Join(x.Audience.Roles, ", "))
	}
	for _, c := range x.Audience.Claims {
		of = append(of, c.Name+" "+strings.Join(c.Values, ", "))
	}
	if len(of) > 0 {
		text += " of " + strings.Join(of, " and ")
	}
	return text
}

// shown is a variant as the header shows it.
func (d *Definition) shown(variant string) string {
	return newVariant("", variant, d.Variants[variant], 0).header
}
