package manifests

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

const (
	library = `package meta

type Common struct {
	Name   string            ` + "`json:\"name,omitempty\"`" + `
	Labels map[string]string ` + "`json:\"labels,omitempty\"`" + `
}

type Size struct{ bytes int64 }

func (s *Size) UnmarshalJSON([]byte) error { return nil }
`
	types = `package v1

import (
	"time"

	other "example.org/meta"
)

type Policy string

const (
	Always Policy = "Always"
	Never  Policy = "Never"
)

type Deployment struct {
	other.Common ` + "`json:\",inline\"`" + `
	Spec         *Spec ` + "`json:\"spec\"`" + `
	Secret       string ` + "`json:\"-\"`" + `
}

type Spec struct {
	Replicas *int32          ` + "`json:\"replicas\"`" + `
	Args     []string        ` + "`json:\"args\"`" + `
	Parts    []other.Common  ` + "`json:\"parts\"`" + `
	Limits   map[string]other.Size ` + "`json:\"limits\"`" + `
	Policy   Policy          ` + "`json:\"policy\"`" + `
	Ready    bool            ` + "`json:\"ready\"`" + `
	Wait     time.Duration   ` + "`json:\"wait\"`" + `
	Any      any             ` + "`json:\"any\"`" + `
}
`
)

func TestCheck(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for name, text := range map[string]string{"meta/types.go": library, "api/v1/types.go": types} {
		path := filepath.Join(folder, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	modules := map[string]string{"example.org/api": filepath.Join(folder, "api"), "example.org/meta": filepath.Join(folder, "meta")}
	for document, problem := range map[string]string{
		"name: a\nlabels: { any: b }\nspec: { replicas: 2, args: [run], parts: [{ name: c }], ready: true }": "",
		"spec: { limits: { memory: 5, cpu: [1] }, wait: 3s, any: { x: 1 }, policy: Never }":                  "",
		"spec: { replica: 2 }":              "1: spec: there is no field replica",
		"spec:\n  parts: [{ nam: c }]":      "2: spec.parts[0]: there is no field nam",
		"nam: a":                            "1: : there is no field nam",
		"Secret: a":                         "1: : there is no field Secret",
		"spec: { replicas: \"2\" }":         "1: spec.replicas: must be a int32",
		"spec: { args: [8080] }":            "1: spec.args[0]: must be a string",
		"labels: { version: 1.0 }":          "1: labels.version: must be a string",
		"spec: { args: run }":               "1: spec.args: must be a list",
		"spec: [1]":                         "1: spec: must be a map",
		"spec: { ready: \"yes\" }":          "1: spec.ready: must be a bool",
		"spec: { policy: Nevr }":            "1: spec.policy: must be one of [\"Always\" \"Never\"], not \"Nevr\"",
		"spec: { ready: true, ready: true}": "1: spec: ready is there twice",
	} {
		t.Run(document, func(t *testing.T) {
			t.Parallel()
			var node yaml.Node
			require.NoError(t, yaml.Unmarshal([]byte(document), &node))
			found, err := (&Source{Modules: modules}).Check(&node, "example.org/api/v1", "Deployment", "json")
			require.NoError(t, err)
			if problem == "" {
				require.Empty(t, found)
			} else {
				require.Equal(t, []string{problem}, found)
			}
		})
	}

	// What cannot be checked is an error.
	s := &Source{Modules: map[string]string{"example.org/api": modules["example.org/api"]}}
	_, err := s.Check(&yaml.Node{Kind: yaml.MappingNode}, "example.org/api/v1", "Deployment", "json")
	require.ErrorContains(t, err, "example.org/meta.Common")
	_, err = s.Check(&yaml.Node{}, "example.org/api/v1", "Job", "json")
	require.ErrorContains(t, err, "has no type Job")
	_, err = s.Check(&yaml.Node{}, "example.org/apis/v1", "Job", "json")
	require.ErrorContains(t, err, "is in none of the modules")
}

func TestUnlisted(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for _, name := range []string{"kustomization.yaml", "job.yaml", "pod.yaml"} {
		require.NoError(t, os.WriteFile(filepath.Join(folder, name), nil, 0o600))
	}
	require.Equal(t, []string{" there is no resource jobs.yaml", " job.yaml is no resource"}, unlisted(folder, []string{"jobs.yaml", "pod.yaml"}))
	require.Empty(t, unlisted(folder, []string{"job.yaml", "pod.yaml"}))
}

func TestOneDocumentAFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "two.yaml")
	require.NoError(t, os.WriteFile(path, []byte("a: 1\n---\nb: 2\n"), 0o600))
	_, err := read(path, &struct{}{})
	require.ErrorContains(t, err, "more than one document")
}
