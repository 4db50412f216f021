-- What Quarto does and pandoc alone does not: numbered equations, references to them, folded boxes.
local numbers, count = {}, 0

local function number_equations(inlines)
  for i, inline in ipairs(inlines) do
    if inline.t == "Math" and inline.mathtype == "DisplayMath" then
      for j = i + 1, math.min(i + 2, #inlines) do
        local label = inlines[j].t == "Str" and inlines[j].text:match("^{#(eq%-[%w-]+)}$")
        if label then
          count = count + 1
          numbers[label] = count
          inlines[i] = pandoc.Span({inline}, pandoc.Attr(label, {"equation"}, {number = "(" .. count .. ")"}))
          inlines[j] = pandoc.Str("")
        end
      end
    end
  end
  return inlines
end

-- A reference to a label that is not there stays a citation, which the check reports.
local function refer(cite)
  local number = #cite.citations == 1 and numbers[cite.citations[1].id]
  if number then
    return pandoc.Link("Equation " .. number, "#" .. cite.citations[1].id)
  end
end

local function fold(div)
  if div.attributes.collapse then
    local summary = "<details><summary>" .. div.attributes.title .. "</summary>"
    local blocks = pandoc.List({pandoc.RawBlock("html", summary)})
    blocks:extend(div.content)
    blocks:insert(pandoc.RawBlock("html", "</details>"))
    return blocks
  end
end

return {{Inlines = number_equations}, {Cite = refer, Div = fold}}
