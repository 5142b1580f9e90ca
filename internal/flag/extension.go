package flag

import (
	"fmt"
	"math"

	"go.yaml.in/yaml/v3"
)

// Bounds within the extension.
const (
	maxPrerequisites = 16
	maxAudience      = 1000
	maxUserLists     = MaxVariants
)

// extension reads the "tollgate" member.
func (p *documentReader) extension(x *Extension, n *yaml.Node, key string) {
	p.object(n, key, map[string]field{
		"description": p.text(&x.Description, maxTextBytes),
		"owner":       p.text(&x.Owner, maxTextBytes),
		"expires":     p.time(&x.Expires),
		"header": func(n *yaml.Node, key string) {
			x.Header = new(bool)
			p.boolean(x.Header)(n, key)
		},
		"killed":    p.boolean(&x.Killed),
		"force":     p.variantName(&x.Force),
		"on":        p.variantName(&x.On),
		"off":       p.variantName(&x.Off),
		"salt":      p.text(&x.Salt, maxTextBytes),
		"hash":      p.hash(&x.Hash, HashTollgate1, HashFlagd1, HashFlagd2),
		"flagdHash": p.hash(&x.FlagdHash, HashFlagd1, HashFlagd2),
		"flagdKey":  p.text(&x.FlagdKey, maxTextBytes),
		"schedule": func(n *yaml.Node, key string) {
			p.object(n, key, map[string]field{
				"from":  p.time(&x.Schedule.From),
				"until": p.time(&x.Schedule.Until),
			})
			if s := x.Schedule; !s.From.IsZero() && !s.Until.IsZero() && !s.From.Before(s.Until) {
				p.fault(n, key, nil, "a schedule whose until is after its from")
			}
		},
		"prerequisites": func(n *yaml.Node, key string) {
			p.list(n, key, maxPrerequisites, func(n *yaml.Node, key string) {
				var q Prerequisite
				p.object(n, key, map[string]field{
					"flag":     p.text(&q.Flag, maxNameBytes),
					"variants": p.texts(&q.Variants, MaxVariants),
				})
				if q.Flag == "" || len(q.Variants) == 0 {
					p.fault(n, key, nil, "a flag and its variants")
				}
				x.Prerequisites = append(x.Prerequisites, q)
			})
		},
		"users": func(n *yaml.Node, key string) {
			p.list(n, key, maxUserLists, func(n *yaml.Node, key string) {
				var u UserList
				p.object(n, key, map[string]field{
					"variant": p.variantName(&u.Variant),
					"keys":    p.texts(&u.Keys, MaxUsers),
				})
				if u.Variant == "" || len(u.Keys) == 0 {
					p.fault(n, key, nil, "a variant and the keys of users")
				}
				x.Users = append(x.Users, u)
			})
		},
		"audience": func(n *yaml.Node, key string) { p.audience(&x.Audience, n, key) },
		"layer": func(n *yaml.Node, key string) {
			x.Layer = &Layer{}
			p.object(n, key, map[string]field{
				"name":  p.text(&x.Layer.Name, maxNameBytes),
				"from":  p.percentage(&x.Layer.From),
				"until": p.percentage(&x.Layer.Until),
			})
			if x.Layer.Name == "" || x.Layer.From >= x.Layer.Until {
				p.fault(n, key, nil, "a name, and a slice whose until is above its from")
			}
		},
		"holdout": func(n *yaml.Node, key string) {
			x.Holdout = &Holdout{}
			p.object(n, key, map[string]field{
				"name":       p.text(&x.Holdout.Name, maxNameBytes),
				"percentage": p.percentage(&x.Holdout.Percentage),
			})
			if x.Holdout.Name == "" {
				p.fault(n, key, nil, "a name and a percentage")
			}
		},
		"rollout": func(n *yaml.Node, key string) {
			x.Rollout = &Rollout{}
			p.rollout(x.Rollout, n, key)
		},
	})
}

func (p *documentReader) audience(a *Audience, n *yaml.Node, key string) {
	p.object(n, key, map[string]field{
		"tiers": p.texts(&a.Tiers, maxAudience),
		"roles": p.texts(&a.Roles, maxAudience),
		"claims": func(n *yaml.Node, key string) {
			p.list(n, key, maxPrerequisites, func(n *yaml.Node, key string) {
				var m ClaimMatch
				p.object(n, key, map[string]field{
					"name":   p.text(&m.Name, maxTextBytes),
					"values": p.texts(&m.Values, maxAudience),
				})
				if m.Name == "" || len(m.Values) == 0 {
					p.fault(n, key, nil, "a claim's name and its values")
				}
				a.Claims = append(a.Claims, m)
			})
		},
	})
}

func (p *documentReader) rollout(o *Rollout, n *yaml.Node, key string) {
	given := false
	p.object(n, key, map[string]field{
		"percentage": func(n *yaml.Node, key string) {
			given = true
			p.percentage(&o.Percentage)(n, key)
		},
		"progressive": func(n *yaml.Node, key string) {
			o.Progressive = &Progressive{End: Everyone}
			p.progressive(o.Progressive, n, key)
		},
		"variant": p.variantName(&o.Variant),
		"variants": func(n *yaml.Node, key string) {
			total := int64(0)
			seen := map[string]bool{}
			p.list(n, key, MaxVariants, func(n *yaml.Node, key string) {
				var w Weight
				p.object(n, key, map[string]field{
					"variant": p.variantName(&w.Variant),
					"weight": func(n *yaml.Node, key string) {
						f, ok := number(n)
						if !ok || f != math.Trunc(f) || f < 0 || f > math.MaxInt32 {
							p.fault(n, key, shown(n), "a whole number from 0 to 2147483647")
							return
						}
						w.Weight = int32(f)
					},
				})
				if w.Variant == "" || seen[w.Variant] {
					p.fault(n, key, w.Variant, "a variant, each one once, and its weight")
				}
				seen[w.Variant] = true
				total += int64(w.Weight)
				o.Variants = append(o.Variants, w)
			})
			if total <= 0 || total > math.MaxInt32 {
				p.fault(n, key, total, "weights that add up to between 1 and 2147483647")
			}
		},
		"bucketBy": p.text(&o.BucketBy, maxTextBytes),
	})
	if given == (o.Progressive != nil) {
		p.fault(n, key, nil, "either a percentage or progressive")
	}
	if o.Variant != "" && len(o.Variants) > 0 {
		p.fault(n, key, nil, "either a variant or variants")
	}
}

func (p *documentReader) progressive(g *Progressive, n *yaml.Node, key string) {
	p.object(n, key, map[string]field{
		"from":  p.time(&g.From),
		"until": p.time(&g.Until),
		"start": p.percentage(&g.Start),
		"end":   p.percentage(&g.End),
	})
	if g.From.IsZero() || g.Until.IsZero() || !g.From.Before(g.Until) {
		p.fault(n, key, fmt.Sprintf("%s to %s", g.From, g.Until), "times from and until, from before until")
	}
}
