%% Templates in settings: texts that may contain `${Name}'.
-module(nats_gateway_template).

-export([render/2]).

%% A value is not searched for variables. A `${' without an end stays as it is.
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
