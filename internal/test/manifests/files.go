package manifests

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Modules are those whose types the files are of.
func Modules() []string {
	return []string{
		"k8s.io/api@v0.35.0",
		"k8s.io/apimachinery@v0.35.0",
		"sigs.k8s.io/kustomize/api@v0.20.1",
		"sigs.k8s.io/kustomize/kyaml@v0.20.1",
		"github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring@v0.87.0",
		"github.com/kedacore/keda/v2@v2.18.1",
		"github.com/goreleaser/goreleaser/v2@v2.15.1", // as in release.yml
	}
}

// packageOf is the import path of an API group. Those of Kubernetes itself have its name.
func packageOf(apiVersion string) string {
	switch group, version, _ := strings.Cut(apiVersion, "/"); {
	case version == "":
		return "k8s.io/api/core/" + group
	case group == "kustomize.config.k8s.io":
		return "sigs.k8s.io/kustomize/api/types"
	case group == "monitoring.coreos.com":
		return "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/" + version
	case group == "keda.sh":
		return "github.com/kedacore/keda/v2/apis/keda/" + version
	default:
		return "k8s.io/api/" + strings.TrimSuffix(group, ".k8s.io") + "/" + version
	}
}

// ErrUnavailable says that a module cannot be downloaded from here.
var ErrUnavailable = errors.New("the source of the types is not available")

// Download downloads modules, and returns the folder of each.
func Download(ctx context.Context, modules []string) (map[string]string, error) {
	command := exec.CommandContext(ctx, "go", append([]string{"mod", "download", "-json"}, modules...)...)
	command.Dir = os.TempDir() // outside of this module, which does not require them
	command.Stderr = os.Stderr
	output, err := command.Output()
	folders := map[string]string{}
	for d := json.NewDecoder(bytes.NewReader(output)); ; {
		var m struct{ Path, Dir, Error string }
		if broken := d.Decode(&m); errors.Is(broken, io.EOF) {
			break
		} else if broken != nil {
			return nil, errors.Join(err, broken)
		}
		if m.Error != "" {
			return nil, fmt.Errorf("%w: %s", ErrUnavailable, m.Error)
		}
		folders[m.Path] = m.Dir
	}
	return folders, err
}

// CheckFiles returns what is wrong with the files of the repository at root, and how many documents there are.
func CheckFiles(root string, s *Source) (problems []string, documents int, err error) {
	report := func(file string, found []string) {
		for _, problem := range found {
			problems = append(problems, file+":"+problem)
		}
	}
	folder := filepath.Join(root, "deploy", "kubernetes")
	err = filepath.WalkDir(folder, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || filepath.Ext(path) != ".yaml" {
			return err
		}
		var meta struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
			Resources  []string
		}
		document, err := read(path, &meta)
		if err != nil {
			return err
		}
		found, err := s.Check(document, packageOf(meta.APIVersion), meta.Kind, "json")
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		documents++
		name, _ := filepath.Rel(root, path)
		if meta.Kind == "Kustomization" {
			found = append(found, unlisted(filepath.Dir(path), meta.Resources)...)
		}
		report(name, found)
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	const releases = ".goreleaser.yaml"
	document, err := read(filepath.Join(root, releases), &struct{}{})
	if err != nil {
		return nil, 0, err
	}
	found, err := s.Check(document, "github.com/goreleaser/goreleaser/v2/pkg/config", "Project", "yaml")
	report(releases, found)
	return problems, documents + 1, err
}

// read reads a file of one document.
func read(path string, meta any) (*yaml.Node, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var document, second yaml.Node
	d := yaml.NewDecoder(file)
	if err := d.Decode(&document); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	if err := d.Decode(&second); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s has more than one document, of which only one would be checked", path)
	}
	return &document, document.Decode(meta)
}

// unlisted returns the resources that are not there, and the files that are no resources: they would never be applied.
func unlisted(folder string, resources []string) (problems []string) {
	for _, name := range resources {
		if _, err := os.Stat(filepath.Join(folder, name)); err != nil {
			problems = append(problems, " there is no resource "+name)
		}
	}
	files, _ := filepath.Glob(filepath.Join(folder, "*.yaml")) // the pattern is well-formed
	for _, file := range files {
		if name := filepath.Base(file); name != "kustomization.yaml" && !slices.Contains(resources, name) {
			problems = append(problems, " "+name+" is no resource")
		}
	}
	return problems
}
