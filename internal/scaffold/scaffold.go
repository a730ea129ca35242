// Package scaffold writes the beginning of a program that builds on the worker.
package scaffold

import (
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"text/template"
)

// The names end with .tmpl, so that the files are no part of this module.
//
//go:embed all:files
var files embed.FS

// program is what the templates say.
type program struct {
	// Module is the path of its module, and Name the last part of that, without a major version.
	Module, Name string
	// Worker is the version of the worker's module; "" leaves it to `go mod tidy`.
	Worker string
}

var (
	modulePaths = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]*(/[a-z0-9][a-z0-9._-]*)*$`)
	major       = regexp.MustCompile(`^v[0-9]+$`)
	released    = regexp.MustCompile(`^v[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$`)
)

// ErrName says what the name of a module must be.
var ErrName = errors.New("the name must be the path of a module in lower case, like example.org/billing, or billing")

// Write writes the module into a new folder of its name, and returns the folder and the names of the files. version is that of the
// worker which the module is to require; if it is none that is released, the module requires the newest.
func Write(parent, modulePath, version string) (folder string, names []string, err error) {
	if !modulePaths.MatchString(modulePath) {
		return "", nil, fmt.Errorf("%w, not %q", ErrName, modulePath)
	}
	p := program{Module: modulePath, Name: path.Base(modulePath)}
	if major.MatchString(p.Name) && path.Dir(modulePath) != "." {
		p.Name = path.Base(path.Dir(modulePath))
	}
	if released.MatchString(version) {
		p.Worker = version
	}
	folder = filepath.Join(parent, p.Name)
	if err := os.Mkdir(folder, 0o755); errors.Is(err, fs.ErrExist) {
		return "", nil, fmt.Errorf("%s exists already: nothing was written", folder)
	} else if err != nil {
		return "", nil, err
	}
	templates, err := fs.Sub(files, "files")
	if err != nil {
		return "", nil, err
	}
	err = fs.WalkDir(templates, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		target := strings.TrimSuffix(name, ".tmpl")
		names = append(names, target)
		return p.write(templates, name, filepath.Join(folder, filepath.FromSlash(target)))
	})
	return folder, names, err
}

func (p program) write(templates fs.FS, name, target string) error {
	t, err := template.New(path.Base(name)).Delims("[[", "]]").ParseFS(templates, name)
	if err != nil {
		return err
	}
	var text strings.Builder
	if err := t.Execute(&text, p); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return os.WriteFile(target, []byte(text.String()), 0o644)
}
