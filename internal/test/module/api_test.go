package module_test

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the listing of the API anew") //nolint:gochecknoglobals // a flag of the test

// The listing of what is public is committed, so that each change to it is seen: also one of an internal type that a public name
// stands for.
func TestAPI(t *testing.T) {
	t.Parallel()
	listing := filepath.Join("..", "..", "..", "docs", "api.txt")
	var got strings.Builder
	got.WriteString("The exported names of the public packages. `make api` writes this file.\n")
	load := packages(t)
	for _, path := range []string{"github.com/healz/worker", "github.com/healz/worker/service", "github.com/healz/worker/workertest"} {
		p, err := load.Import(path)
		require.NoError(t, err)
		fmt.Fprintf(&got, "\npackage %s // %s\n", p.Name(), path)
		for _, name := range p.Scope().Names() {
			if token.IsExported(name) {
				list(&got, p.Scope().Lookup(name))
			}
		}
	}
	if *update {
		require.NoError(t, os.WriteFile(listing, []byte(got.String()), 0o600))
	}
	want, err := os.ReadFile(listing)
	require.NoError(t, err)
	before, now := strings.Split(string(want), "\n"), strings.Split(got.String(), "\n")
	var changes []string
	for _, line := range before {
		if !slices.Contains(now, line) {
			changes = append(changes, "- "+line)
		}
	}
	for _, line := range now {
		if !slices.Contains(before, line) {
			changes = append(changes, "+ "+line)
		}
	}
	require.Empty(t, strings.Join(changes, "\n"), "the API has changed: see CHANGELOG.md, and run `make api`")
	require.Equal(t, len(before), len(now), "the listing is out of date: run `make api`")
}

// go doc does not show the fields and methods of an alias, so its comment names them.
func TestAliasesAreDescribed(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	names, err := filepath.Glob(filepath.Join(root, "*.go"))
	require.NoError(t, err)
	comments := map[string]string{}
	for _, name := range names {
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		require.NoError(t, err)
		for _, declared := range file.Decls {
			group, isGroup := declared.(*ast.GenDecl)
			if !isGroup {
				continue
			}
			for _, spec := range group.Specs {
				if named, isType := spec.(*ast.TypeSpec); isType && named.Assign.IsValid() {
					comments[named.Name.Name] = group.Doc.Text()
				}
			}
		}
	}
	require.Greater(t, len(comments), 15)
	listing, err := os.ReadFile(filepath.Join(root, "docs", "api.txt"))
	require.NoError(t, err)
	ofRoot, _, _ := strings.Cut(string(listing), "package service")
	usual := []string{"Error", "Unwrap", "MarshalJSON", "UnmarshalJSON"}
	comments["Stateful"] += comments["Aggregate"] // to which it refers
	for _, member := range regexp.MustCompile(`(?m)^  (\w+)\.(\w+)`).FindAllStringSubmatch(ofRoot, -1) {
		if comment, isAlias := comments[member[1]]; isAlias && !slices.Contains(usual, member[2]) {
			require.Regexp(t, `\b`+member[2]+`\b`, comment, "the comment of %s", member[1])
		}
	}
}

// packages imports packages by what the compiler has written of them.
func packages(t *testing.T) types.Importer {
	t.Helper()
	exports := map[string]string{}
	list := json.NewDecoder(strings.NewReader(output(t, filepath.Join("..", "..", ".."), nil, "",
		"go", "list", "-export", "-deps", "-json=ImportPath,Export", ".", "./service", "./workertest")))
	for {
		var p struct{ ImportPath, Export string }
		err := list.Decode(&p)
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		exports[p.ImportPath] = p.Export
	}
	return importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) { return os.Open(exports[path]) })
}

// list writes a line for a name, and one for each exported field and method of a type.
func list(w io.Writer, o types.Object) {
	short := func(p *types.Package) string { return p.Name() }
	if _, isType := o.(*types.TypeName); !isType {
		line := types.ObjectString(o, short)
		if c, isConst := o.(*types.Const); isConst {
			line += " = " + c.Val().String()
		}
		fmt.Fprintln(w, line)
		return
	}
	of := types.Unalias(o.Type())
	switch u := of.Underlying().(type) {
	case *types.Struct:
		fmt.Fprintf(w, "type %s struct\n", o.Name())
		for field := range u.Fields() {
			if field.Exported() {
				fmt.Fprintf(w, "  %s.%s %s\n", o.Name(), field.Name(), types.TypeString(field.Type(), short))
			}
		}
	case *types.Interface:
		fmt.Fprintf(w, "type %s interface\n", o.Name())
	default:
		fmt.Fprintf(w, "type %s %s\n", o.Name(), types.TypeString(u, short))
	}
	if !types.IsInterface(of) {
		of = types.NewPointer(of)
	}
	var methods []string
	for method := range types.NewMethodSet(of).Methods() {
		if m := method.Obj(); m.Exported() {
			methods = append(methods, fmt.Sprintf("  %s.%s%s\n", o.Name(), m.Name(), strings.TrimPrefix(types.TypeString(m.Type(), short), "func")))
		}
	}
	slices.Sort(methods)
	fmt.Fprint(w, strings.Join(methods, ""))
}
