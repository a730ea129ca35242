// Package manifests checks the files of deploy/kubernetes and the configuration of releases against the Go types of the
// programs that read them. It reads their source, which is downloaded in seconds, where to build these programs takes minutes.
package manifests

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// Source is the source of the modules, in a folder for each import path of one.
type Source struct {
	Modules map[string]string
	parsed  map[string]*source
}

// source is what counts of a package.
type source struct {
	path  string
	types map[string]declared
	// opaque are the types that decode themselves.
	opaque map[string]bool
	// values are those of the constants of a type of strings.
	values map[string][]string
}

// declared is a type, or a part of one, and what the names in it mean.
type declared struct {
	ast.Expr
	in      *source
	imports map[string]string
}

func (s *Source) load(path string) (*source, error) {
	if p, ok := s.parsed[path]; ok {
		return p, nil
	}
	folder := ""
	for module, in := range s.Modules {
		if path == module || strings.HasPrefix(path, module+"/") {
			folder = filepath.Join(in, filepath.FromSlash(strings.TrimPrefix(path, module)))
		}
	}
	if folder == "" {
		return nil, nil
	}
	p := &source{path, map[string]declared{}, map[string]bool{}, map[string][]string{}}
	files, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	for _, entry := range files {
		if !strings.HasSuffix(entry.Name(), ".go") || strings.HasSuffix(entry.Name(), "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(folder, entry.Name()), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		p.add(file)
	}
	if s.parsed == nil {
		s.parsed = map[string]*source{}
	}
	s.parsed[path] = p
	return p, nil
}

func (p *source) add(file *ast.File) {
	imports := map[string]string{}
	for _, i := range file.Imports {
		path, _ := strconv.Unquote(i.Path.Value) // it was parsed
		name := path[strings.LastIndexByte(path, '/')+1:]
		if i.Name != nil {
			name = i.Name.Name
		}
		imports[name] = path
	}
	for _, d := range file.Decls {
		switch d := d.(type) {
		case *ast.FuncDecl:
			if d.Recv != nil && (d.Name.Name == "UnmarshalJSON" || d.Name.Name == "UnmarshalYAML") {
				if of, ok := d.Recv.List[0].Type.(*ast.StarExpr); ok {
					p.opaque[fmt.Sprint(of.X)] = true
				}
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				switch spec := spec.(type) {
				case *ast.TypeSpec:
					p.types[spec.Name.Name] = declared{spec.Type, p, imports}
				case *ast.ValueSpec:
					of, named := spec.Type.(*ast.Ident)
					for _, v := range spec.Values {
						if text, ok := v.(*ast.BasicLit); ok && named && text.Kind == token.STRING {
							value, _ := strconv.Unquote(text.Value)
							p.values[of.Name] = append(p.values[of.Name], value)
						}
					}
				}
			}
		}
	}
}

// check reports what a value has that its type does not take.
type check struct {
	*Source
	// tag is json or yaml.
	tag      string
	problems []string
}

// Check returns what is wrong with a document of a type, and where. tag is json or yaml: by whose tags the type is read.
func (s *Source) Check(document *yaml.Node, path, name, tag string) ([]string, error) {
	p, err := s.load(path)
	if err != nil {
		return nil, err
	}
	if p == nil {
		return nil, fmt.Errorf("%s is in none of the modules: %w", path, fs.ErrNotExist)
	}
	t, ok := p.types[name]
	if !ok {
		return nil, fmt.Errorf("%s has no type %s", path, name)
	}
	c := check{Source: s, tag: tag}
	err = c.value(document, t, "")
	return c.problems, err
}

func (c *check) wrong(n *yaml.Node, at, format string, arguments ...any) {
	c.problems = append(c.problems, fmt.Sprintf("%d: %s: %s", n.Line, strings.TrimPrefix(at, "."), fmt.Sprintf(format, arguments...)))
}

func (c *check) value(n *yaml.Node, t declared, at string) error {
	if n.Kind == yaml.DocumentNode {
		n = n.Content[0]
	}
	switch of := t.Expr.(type) {
	case *ast.StarExpr:
		t.Expr = of.X
		return c.value(n, t, at)
	case *ast.ArrayType:
		if n.Kind != yaml.SequenceNode {
			c.wrong(n, at, "must be a list")
			return nil
		}
		t.Expr = of.Elt
		for i, element := range n.Content {
			if err := c.value(element, t, fmt.Sprintf("%s[%d]", at, i)); err != nil {
				return err
			}
		}
	case *ast.MapType:
		t.Expr = of.Value
		return c.entries(n, at, func(string) (declared, bool) { return t, true })
	case *ast.StructType:
		fields, err := c.fields(t)
		if err != nil {
			return err
		}
		return c.entries(n, at, func(name string) (declared, bool) { t, ok := fields[name]; return t, ok })
	case *ast.Ident, *ast.SelectorExpr:
		return c.named(n, t, at)
	}
	return nil // anything
}

func (c *check) entries(n *yaml.Node, at string, of func(name string) (declared, bool)) error {
	if n.Kind != yaml.MappingNode {
		c.wrong(n, at, "must be a map")
		return nil
	}
	seen := map[string]bool{}
	for pair := range slices.Chunk(n.Content, 2) {
		name := pair[0].Value
		t, ok := of(name)
		switch {
		case !ok:
			c.wrong(pair[0], at, "there is no field %s", name)
			continue
		case seen[name]:
			c.wrong(pair[0], at, "%s is there twice", name)
		}
		seen[name] = true
		if err := c.value(pair[1], t, at+"."+name); err != nil {
			return err
		}
	}
	return nil
}

// fields are those of a struct and of the structs that it embeds.
func (c *check) fields(t declared) (map[string]declared, error) {
	all := map[string]declared{}
	for _, f := range t.Expr.(*ast.StructType).Fields.List {
		tag := ""
		if f.Tag != nil {
			text, _ := strconv.Unquote(f.Tag.Value)
			tag = reflect.StructTag(text).Get(c.tag)
		}
		name, options, _ := strings.Cut(tag, ",")
		of := declared{f.Type, t.in, t.imports}
		switch {
		case name == "-":
		case name != "":
			all[name] = of
		case len(f.Names) == 0 || strings.Contains(options, "inline"):
			embedded, err := c.resolve(of)
			if err != nil {
				return nil, err
			}
			if _, ok := embedded.Expr.(*ast.StructType); !ok {
				return nil, fmt.Errorf("%s embeds a struct, %s, whose source is in none of the modules", t.in.path, spelled(of))
			}
			fields, err := c.fields(embedded)
			if err != nil {
				return nil, err
			}
			maps.Copy(all, fields)
		}
	}
	return all, nil
}

// spelled is the name of a type with the path of its package.
func spelled(t declared) string {
	if of, ok := t.Expr.(*ast.SelectorExpr); ok {
		return t.imports[fmt.Sprint(of.X)] + "." + of.Sel.Name
	}
	return fmt.Sprint(t.Expr)
}

// resolve returns the type that a name means, or t itself if that is of another module or predeclared.
func (c *check) resolve(t declared) (declared, error) {
	in, name := t.in, ""
	switch of := t.Expr.(type) {
	case *ast.StarExpr:
		t.Expr = of.X
		return c.resolve(t)
	case *ast.Ident:
		name = of.Name
	case *ast.SelectorExpr:
		var err error
		if in, err = c.load(t.imports[fmt.Sprint(of.X)]); err != nil || in == nil {
			return t, err
		}
		name = of.Sel.Name
	}
	if found, ok := in.types[name]; ok && !in.opaque[name] {
		return found, nil
	}
	return t, nil
}

// named checks a value of a named type; one of a module that is not there, or that decodes itself, is not checked.
func (c *check) named(n *yaml.Node, t declared, at string) error {
	found, err := c.resolve(t)
	if err != nil {
		return err
	}
	if found.Expr != t.Expr {
		if err := c.value(n, found, at); err != nil {
			return err
		}
		name := t.Expr
		if selected, ok := name.(*ast.SelectorExpr); ok {
			name = selected.Sel
		}
		if values := found.in.values[fmt.Sprint(name)]; n.Kind == yaml.ScalarNode && len(values) > 0 && !slices.Contains(values, n.Value) {
			c.wrong(n, at, "must be one of %q, not %q", values, n.Value)
		}
		return nil
	}
	tags := map[string]string{
		"string": "!!str", "bool": "!!bool", "int": "!!int", "int32": "!!int", "int64": "!!int", "float64": "!!float",
	}
	if basic, ok := t.Expr.(*ast.Ident); ok && tags[basic.Name] != "" && n.ShortTag() != tags[basic.Name] {
		c.wrong(n, at, "must be a %s", basic.Name)
	}
	return nil
}
