package identity

import (
	"fmt"
	"strings"
)

// templatePrefix begins every template: the home is a whole level of its own, so that nothing reaches from one home to another.
const templatePrefix = "homes/{home}/"

// Limits of one entry's templates.
const (
	templatesMax     = 32
	templateBytesMax = 512
)

// checkTemplates says what is wrong with templates of topics.
func checkTemplates(all []string) error {
	if len(all) > templatesMax {
		return fmt.Errorf("%d topic templates; at most %d", len(all), templatesMax)
	}
	for _, t := range all {
		if err := checkTemplate(t); err != nil {
			return fmt.Errorf("topic template %q %w", t, err)
		}
	}
	return nil
}

func checkTemplate(t string) error {
	rest, ok := strings.CutPrefix(t, templatePrefix)
	switch {
	case !ok:
		return fmt.Errorf("does not begin with %s", templatePrefix)
	case len(t) > templateBytesMax:
		return fmt.Errorf("has %d bytes; at most %d", len(t), templateBytesMax)
	}
	for more := true; more; {
		var level string
		level, rest, more = strings.Cut(rest, "/")
		switch {
		case level == "{user}" || level == "{client}" || level == "{device}" || level == "+":
		case level == "#" && !more:
		case level == "" || strings.ContainsAny(level, "{}+#"):
			return fmt.Errorf("has the level %q; want a name, {user}, {client}, {device}, + or, at its end, #", level)
		}
	}
	return nil
}

// covers says whether a template, after homes/{home}/, has everything that a filter matches (or a topic name, which is a filter without
// wildcards).
func (id *Identity) covers(g *Grant, template, client, filter string) bool {
	for template != "#" {
		t, trest, tmore := strings.Cut(template, "/")
		f, frest, fmore := strings.Cut(filter, "/")
		switch {
		case !id.coversLevel(g, t, client, f):
			return false
		case tmore && fmore:
			template, filter = trest, frest
		case tmore:
			return trest == "#" // a/# is also a
		default:
			return !fmore
		}
	}
	return true
}

// coversLevel is covers for one level. What a filter leaves open is never taken for a name, whatever users and clients are called.
func (id *Identity) coversLevel(g *Grant, template, client, level string) bool {
	switch {
	case level == "#":
		return false
	case template == "+":
		return true
	case level == "+":
		return template == "{device}" && len(g.Devices) == 0
	case template == "{user}":
		return level == id.User
	case template == "{client}":
		return client != "" && level == client
	case template == "{device}":
		return level != "" && g.holds(level)
	}
	return level == template
}
