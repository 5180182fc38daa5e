%% Who a NATS client is for the broker: the client id, username and password of its CONNECT, and its
%% mountpoint.
%%
%% A client that has only a token logs in with an empty username and the token as password, because
%% brokers look for a JWT there. If a login of the gateway's own has accepted the client, that login
%% has checked the password, so the broker gets only the name. `clientinfo_override' can change
%% this.
-module(nats_gateway_mqtt_login).

-export([credentials/1]).
-export([render/2]).

%% The most bytes that an MQTT string can have.
-define(MAX_STRING, 65535).

%% `error' means that no broker could know this name.
-spec credentials(nats_gateway_host:client()) ->
    {ok, nats_gateway_host:session(), Username :: undefined | binary(),
        Password :: undefined | binary()}
    | error.
credentials(Client = #{connect := Fields, config := Config}) ->
    Login = maps:get(login, Client, #{}),
    Override = maps:get(clientinfo_override, Config, #{}),
    UsernameTemplate = maps:get(username, Override, undefined),
    PasswordTemplate = maps:get(password, Override, undefined),
    Generated = generated(),
    Vars = maps:merge(
        variables(<<"Packet.">>, Fields),
        maps:merge(variables(<<"Login.">>, Login), #{<<"generated">> => Generated})
    ),
    ClientId =
        case render(maps:get(clientid, Override, <<"${generated}">>), Vars) of
            <<>> -> Generated;
            Id -> Id
        end,
    Username =
        holdable(
            case UsernameTemplate of
                undefined -> text(maps:get(username, Login, maps:get(user, Fields, <<>>)));
                _ -> render(UsernameTemplate, Vars)
            end
        ),
    Password =
        case PasswordTemplate of
            undefined when map_size(Login) > 0 -> <<>>;
            _ when PasswordTemplate =:= undefined; PasswordTemplate =:= <<"${Packet.pass}">> ->
                password(Username, Fields);
            _ -> render(PasswordTemplate, Vars)
        end,
    Mountpoint = render(maps:get(mountpoint, Config, <<>>), Vars#{
        <<"clientid">> => ClientId, <<"username">> => Username
    }),
    Valid =
        nats_gateway_mqtt_nif:is_string(ClientId) andalso
            nats_gateway_mqtt_nif:is_string(Username) andalso
            byte_size(Password) =< ?MAX_STRING andalso
            nats_gateway_mqtt_nif:is_string(Mountpoint) andalso
            %% a name that contains a wildcard must not open the mountpoints of others
            not nats_gateway_filters:has_wildcard(Mountpoint),
    Named = #{mountpoint => Mountpoint, clientid => ClientId, username => unless_empty(Username)},
    Session = maps:merge(Named, proven_user(Username, Password, Client)),
    case Valid of
        false -> error;
        true when Password =:= <<>> -> {ok, Session, unless_empty(Username), undefined};
        %% MQTT 3.1.1 and the codec require a username with every password.
        true -> {ok, Session, Username, Password}
    end.

%% Whom the broker lets in has shown that the name is its own, if the operator says that the broker
%% authenticates, and if name and password are those that the client has sent.
proven_user(_, _, #{login := _}) ->
    #{};
proven_user(User, Password, #{connect := #{user := User, pass := Password}, config := Config}) when
    User =/= <<>>, Password =/= <<>>
->
    case Config of
        #{upstream := #{authentication := true}} -> #{proven_user => User};
        #{} -> #{}
    end;
proven_user(_, _, _) ->
    #{}.

%% nats-server takes any user name. Characters that no MQTT string can hold become U+FFFD: the
%% broker and the mountpoint know the client by that name.
holdable(Text) ->
    case nats_gateway_mqtt_nif:is_string(Text) of
        true ->
            Text;
        false ->
            case unicode:characters_to_list(Text) of
                Characters when is_list(Characters) ->
                    unicode:characters_to_binary(lists:map(fun character/1, Characters));
                _ ->
                    Text
            end
    end.

character(C) ->
    case nats_gateway_mqtt_nif:is_string(<<C/utf8>>) of
        true -> C;
        false -> 16#FFFD
    end.

password(Username, Fields) ->
    case maps:get(pass, Fields, <<>>) of
        <<>> when Username =:= <<>> -> maps:get(auth_token, Fields, <<>>);
        Password -> Password
    end.

variables(Prefix, Fields) ->
    maps:fold(
        fun
            (Name, Value, Acc) when is_binary(Value); is_atom(Value); is_integer(Value) ->
                Acc#{<<Prefix/binary, (atom_to_binary(Name))/binary>> => text(Value)};
            (_, _, Acc) ->
                Acc
        end,
        #{},
        Fields
    ).

unless_empty(<<>>) -> undefined;
unless_empty(Text) -> Text.

text(Value) when is_binary(Value) -> Value;
text(Value) when is_atom(Value) -> atom_to_binary(Value);
text(Value) when is_integer(Value) -> integer_to_binary(Value).

%% The id has 23 characters, which every broker accepts.
generated() ->
    <<Number:72>> = crypto:strong_rand_bytes(9),
    iolist_to_binary(io_lib:format("nats-~18.16.0b", [Number])).

%% Replaces the variables `${Name}' of a template. Unknown variables become empty. A value is not
%% searched for variables.
-spec render(Template :: binary(), #{Name :: binary() => binary()}) -> binary().
render(Template, Vars) ->
    nats_gateway_template:render(Template, fun(Name) -> maps:get(Name, Vars, <<>>) end).
