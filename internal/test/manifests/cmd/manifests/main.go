// Command manifests checks the files of deploy/kubernetes and .goreleaser.yaml in the current folder. It exits with 1 if they
// are wrong, and with 3 if it cannot tell, as the source of the types cannot be downloaded.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/healz/worker/internal/test/manifests"
)

func main() { os.Exit(check()) }

func check() int {
	folders, err := manifests.Download(context.Background(), manifests.Modules())
	if errors.Is(err, manifests.ErrUnavailable) {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		return 3
	}
	var problems []string
	var documents int
	if err == nil {
		problems, documents, err = manifests.CheckFiles(".", &manifests.Source{Modules: folders})
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "manifests:", err)
		return 1
	}
	for _, problem := range problems {
		fmt.Println(problem)
	}
	if len(problems) > 0 {
		return 1
	}
	fmt.Printf("%d documents are of the types of the programs that read them\n", documents)
	return 0
}
