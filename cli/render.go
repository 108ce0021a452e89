package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"hearthline/deploy"
	"hearthline/pipeline"
	"hearthline/python"
)

func newRender(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Write what runs the pipeline on Kubernetes or Docker Compose",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(
		newRenderTo(o, "k8s", "Write plain Kubernetes manifests, one Deployment a role", `  hearthline render k8s --out manifests && kubectl apply -k manifests
  hearthline render k8s | kubectl diff -f -`, deploy.Kubernetes),
		newRenderTo(o, "image", "Write what the image is built from whose roles run stages in Python or SQL", `  hearthline render image --out image && docker build -t hearthline-stages image`,
			func(plan *pipeline.Plan, s *deploy.Settings) ([]deploy.File, error) {
				return deploy.Image(plan, s, os.DirFS(o.stages()))
			}),
		newRenderTo(o, "compose", "Write a compose.yaml, one container a role", `  hearthline render compose --out . && docker compose --profile infra up`, deploy.Compose),
	)
	return cmd
}

func newRenderTo(o *options, name, short, example string, render func(*pipeline.Plan, *deploy.Settings) ([]deploy.File, error)) *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:     name,
		Short:   short,
		Long:    short + ".\n\nWhat is rendered follows from pipeline.yaml and its section deploy (images, replicas, resources).\nSecrets are named, never held. The same file gives the same bytes.",
		Example: example,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.lock = new(python.Lock)
			plan, err := load(cmd.Context(), cmd, o)
			if err != nil {
				return err
			}
			if plan.Spec.Lock, err = o.lock.Bytes(); err != nil {
				return err
			}
			settings, err := deploy.Read(plan.Spec)
			var files []deploy.File
			if err == nil {
				files, err = render(plan, settings)
			}
			if found := (deploy.Findings)(nil); errors.As(err, &found) {
				for _, f := range found {
					fmt.Fprintln(cmd.ErrOrStderr(), f)
				}
				return errFindings
			}
			if err != nil {
				return err
			}
			return writeFiles(cmd, out, files)
		},
	}
	cmd.Flags().StringVarP(&out, "out", "o", "", "folder to write the files to (default: all of them to standard output)")
	return cmd
}

func writeFiles(cmd *cobra.Command, out string, files []deploy.File) error {
	for _, f := range files {
		if out == "" {
			if _, err := fmt.Fprintf(cmd.OutOrStdout(), "---\n# %s\n%s", f.Name, f.Data); err != nil {
				return err
			}
			continue
		}
		path := filepath.Join(out, filepath.FromSlash(f.Name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { // #nosec G301 -- manifests hold no secrets; containers of another user read them
			return err
		}
		if err := os.WriteFile(path, f.Data, 0o644); err != nil { // #nosec G306 -- likewise
			return err
		}
		fmt.Fprintln(cmd.ErrOrStderr(), "wrote", path)
	}
	return nil
}
