module push

go 1.24
