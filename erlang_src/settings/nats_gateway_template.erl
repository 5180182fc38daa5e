%% Templates in settings: text that may have `${Name}' in it.
-module(nats_gateway_template).

-export([render/2]).

%% Values are not templates themselves. A `${' without its end is text.
-spec render(Template :: binary(), Value :: fun((Name :: binary()) -> binary())) -> binary().
render(Template, Value) ->
    case binary:split(Template, <<"${">>) of
        [Before, Rest] ->
            case binary:split(Rest, <<"}">>) of
                [Name, After] ->
                    <<Before/binary, (Value(Name))/binary, (render(After, Value))/binary>>;
                [_] ->
                    Template
            end;
        [Template] ->
            Template
    end.
