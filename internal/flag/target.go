package flag

import (
	"cmp"
	"fmt"
	"slices"
)

// Targets change whom a flag means.
type Targets struct {
	// Users get a variant by name, before audience and roll-out.
	Users UserEdits `json:"users,omitzero"`
	// Tiers and Roles are lists of the audience.
	Tiers Edits `json:"tiers,omitzero"`
	Roles Edits `json:"roles,omitzero"`
	// Everyone allows removing the last tier or role, after which those of all
	// others are in the audience.
	Everyone bool `json:"everyone,omitempty"`
}

// Edits are names to add to a list and to remove from it. To add what is there
// changes nothing; to remove what is not is an error.
type Edits struct {
	Add    []string `json:"add,omitempty"`
	Remove []string `json:"remove,omitempty"`
}

// UserEdits are Edits of single users.
type UserEdits struct {
	Edits
	// Variant is what added users get; the on variant if empty.
	Variant string `json:"variant,omitempty"`
}

// IsZero reports whether nothing is added or removed.
func (e Edits) IsZero() bool { return len(e.Add)+len(e.Remove) == 0 }

func (t *Targets) none() bool { return t.Users.IsZero() && t.Tiers.IsZero() && t.Roles.IsZero() }

// target changes the definition's own copies of its lists.
func (d *Definition) target(t *Targets) error {
	a := &d.Extension.Audience
	if err := t.audience("tier", t.Tiers, &a.Tiers); err != nil {
		return err
	}
	if err := t.audience("role", t.Roles, &a.Roles); err != nil {
		return err
	}
	if t.Users.IsZero() {
		return nil
	}
	return d.targetUsers(&t.Users)
}

func (t *Targets) audience(of string, e Edits, list *[]string) error {
	had := len(*list) > 0
	*list = slices.Clone(*list)
	for _, name := range e.Remove {
		i := slices.Index(*list, name)
		if i < 0 {
			return fmt.Errorf("the audience has no %s %q", of, name)
		}
		*list = slices.Delete(*list, i, i+1)
	}
	*list = addMissing(*list, e.Add)
	if had && len(*list) == 0 && !t.Everyone {
		return fmt.Errorf(`without its last %s the audience would take any; "everyone" allows that, and the state "off" turns the flag off`, of)
	}
	return nil
}

func (d *Definition) targetUsers(e *UserEdits) error {
	x := &d.Extension
	lists := make([]UserList, len(x.Users), len(x.Users)+1)
	for i, l := range x.Users {
		lists[i] = UserList{Variant: l.Variant, Keys: slices.Clone(l.Keys)}
	}
	for _, user := range e.Remove {
		if !removeUser(lists, user) {
			return fmt.Errorf("no variant has user %q by name", user)
		}
	}
	if len(e.Add) > 0 {
		variant := cmp.Or(e.Variant, d.OnVariant())
		if _, ok := d.Variants[variant]; !ok {
			return fmt.Errorf("users cannot get variant %q: it is none of the flag's", variant)
		}
		for _, user := range e.Add {
			removeUser(lists, user) // from another variant's list
		}
		i := slices.IndexFunc(lists, func(l UserList) bool { return l.Variant == variant })
		if i < 0 {
			i, lists = len(lists), append(lists, UserList{Variant: variant})
		}
		lists[i].Keys = addMissing(lists[i].Keys, e.Add)
	}
	x.Users = slices.DeleteFunc(lists, func(l UserList) bool { return len(l.Keys) == 0 })
	return nil
}

func addMissing(all, more []string) []string {
	for _, name := range more {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}

// removeUser takes a user off every variant's list and says whether one had it.
func removeUser(lists []UserList, user string) bool {
	found := false
	for i := range lists {
		l := &lists[i]
		before := len(l.Keys)
		l.Keys = slices.DeleteFunc(l.Keys, func(key string) bool { return key == user })
		found = found || len(l.Keys) < before
	}
	return found
}
