// Reads a dashboard with the types that Grafana generates from its own schema: no field may be missing, unknown, or of
// another type. Grafana itself accepts nearly anything and ignores what it does not know.
package main

import (
	"fmt"
	"os"

	"github.com/grafana/grafana-foundation-sdk/go/cog/plugins"
	"github.com/grafana/grafana-foundation-sdk/go/dashboard"
)

// check returns what is wrong with a dashboard, or "".
func check(text []byte) string {
	var strict dashboard.Dashboard
	// An error without a text is how the generated code says that there is none.
	if err := strict.UnmarshalJSONStrict(text); err != nil && err.Error() != "" {
		return err.Error()
	}
	if err := strict.Validate(); err != nil && err.Error() != "" {
		return err.Error()
	}
	if len(strict.Panels) == 0 {
		return "there are no panels"
	}
	return ""
}

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: grafana-schema DASHBOARD")
		os.Exit(2)
	}
	text, err := os.ReadFile(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	plugins.RegisterDefaultPlugins()
	if wrong := check(text); wrong != "" {
		fmt.Fprintf(os.Stderr, "%s: %s\n", os.Args[1], wrong)
		os.Exit(1)
	}
}
