%% Logins with the JWT of a user. An account has issued it, and a trusted operator vouches for the
%% account (docs/protocol.md section 7).
%%
%% Operators and accounts are read once, together with the settings. Each login checks two
%% signatures: that of the user's JWT and that of the nonce.
-module(nats_gateway_jwt).

-export([key/2]).
-export([trust/2]).
-export([login/3]).
-export([takes_bearer_tokens/1]).
-export([accounts/1]).
-export([response_permission/2]).

-export_type([trust/0, limits/0, reason/0, account_facts/0]).

-type trust() :: #{AccountKey :: binary() => account()}.

-type account() :: #{
    name := binary(),
    tags := [binary()],
    %% the operator's key that has signed it
    issuer := binary(),
    jwt := binary(),
    not_before := integer(),
    expires := integer(),
    %% the account's own key and those with which it signs users; a scoped key has the limits of its
    %% users
    issuers := #{binary() => undefined | nats_gateway_nif:user_limits()},
    revocations := #{binary() => integer()},
    default_permissions := nats_gateway_nif:permissions(),
    subs := integer(),
    payload := integer(),
    connections := integer(),
    disallow_bearer := boolean()
}.

-type limits() :: #{
    username := binary(),
    nkey := binary(),
    name := binary(),
    account := binary(),
    account_name := binary(),
    %% the key that has signed the user's JWT
    issuer_key := binary(),
    tags := [binary()],
    %% one that is worth nothing without the user's key
    jwt => binary(),
    rules := nats_gateway_permissions:rules(),
    max_payload := non_neg_integer() | infinity,
    max_subscriptions := non_neg_integer() | infinity,
    %% for all users of the account together
    max_account_connections := non_neg_integer() | infinity,
    %% limits that are used up, for the log
    zero_claims := [binary()],
    %% milliseconds from now, and the error that the client gets then
    expires := infinity | {non_neg_integer(), expiry()}
}.

%% Of an account, for those who watch the gateway.
-type account_facts() :: #{
    name := binary(),
    tags := [binary()],
    issuer := binary(),
    jwt := binary(),
    %% whether its time is over, and how many revocations of users it has
    expired := boolean(),
    revocations := #{Key :: binary() => UnixTime :: integer()}
}.

%% If the JWT itself is wrong, the text says what is wrong with it.
-type reason() :: atom() | {bad_jwt, Text :: binary()}.

-type expiry() :: user_authentication_expired | account_authentication_expired.

%% nats-server's defaults for response permissions.
-define(DEFAULT_RESPONSES, 1).
-define(DEFAULT_RESPONSE_MS, 120000).

%% The most subjects that one entry of a template may become, with all the tags of a user.
-define(MAX_COMBINATIONS, 1024).

%% -------------------------------------------------------------------------------------------
%% Whom to trust

%% A public key in its written form. Base32 has only capitals, but EMQX accepts small letters, too.
-spec key(operator | account | user, binary()) -> {ok, binary()} | error.
key(Role, Text) ->
    Key = string:uppercase(Text),
    case nats_gateway_nif:nkey_role(Key) of
        Role -> {ok, Key};
        _ -> error
    end.

%% `Operators' are public keys or JWTs. `Accounts' are JWTs, each with the public key that it must
%% be for, if one is given. The error names the entry, counted from 1.
-spec trust([binary()], [{undefined | binary(), Jwt :: binary()}]) ->
    {ok, trust()}
    | {error, {operator | account | account_key, pos_integer()}, Text :: binary()}.
trust(Operators, Accounts) ->
    try
        Trusted = lists:append([operator(N, Entry) || {N, Entry} <- numbered(Operators)]),
        {ok, maps:from_list([account(N, Entry, Trusted) || {N, Entry} <- numbered(Accounts)])}
    catch
        throw:{invalid, Entry, Text} -> {error, Entry, Text}
    end.

numbered(List) -> lists:zip(lists:seq(1, length(List)), List).

operator(N, <<"ey", _/binary>> = Jwt) ->
    case nats_gateway_nif:jwt_decode(Jwt) of
        {ok, #{kind := operator, subject := Key, claims := Claims}} ->
            #{signing_keys := Keys, strict_signing_key_usage := Strict} = Claims,
            [Key || not Strict] ++ Keys;
        {ok, _} ->
            throw({invalid, {operator, N}, <<"must be the JWT of an operator">>});
        {error, Text} ->
            throw({invalid, {operator, N}, Text})
    end;
operator(N, Text) ->
    case key(operator, Text) of
        {ok, Key} -> [Key];
        error -> throw({invalid, {operator, N}, <<"must be the public key (O...) or JWT of an operator">>})
    end.

account(N, {Stated, Jwt}, Trusted) ->
    Wanted = wanted(Stated),
    case nats_gateway_nif:jwt_decode(Jwt) of
        {ok, #{kind := account, subject := Key}} when Wanted =/= any, Wanted =/= {ok, Key} ->
            throw({invalid, {account_key, N}, <<"must be the key that the JWT is for">>});
        {ok, Token = #{kind := account, subject := Key, issuer := Issuer}} ->
            case lists:member(Issuer, Trusted) of
                true ->
                    {Key, (account(Token))#{jwt => Jwt}};
                false ->
                    throw({invalid, {account, N}, <<"must be signed by a trusted operator">>})
            end;
        {ok, _} ->
            throw({invalid, {account, N}, <<"must be the JWT of an account">>});
        {error, Text} ->
            throw({invalid, {account, N}, Text})
    end.

wanted(undefined) -> any;
wanted(Stated) -> key(account, Stated).

account(#{subject := Key, name := Name, expires := Expires, not_before := NotBefore} = Token) ->
    #{issuer := Issuer} = Token,
    #{claims := Claims = #{signing_keys := SigningKeys, revocations := Revocations}} = Token,
    Kept = [tags, default_permissions, subs, payload, connections, disallow_bearer],
    (maps:with(Kept, Claims))#{
        name => Name,
        issuer => Issuer,
        not_before => NotBefore,
        expires => Expires,
        issuers => maps:from_list([{Key, undefined} | SigningKeys]),
        revocations => maps:from_list(Revocations)
    }.

-spec takes_bearer_tokens(trust()) -> boolean().
takes_bearer_tokens(Trust) ->
    lists:any(fun(#{disallow_bearer := Disallowed}) -> not Disallowed end, maps:values(Trust)).

-spec accounts(trust()) -> #{AccountKey :: binary() => account_facts()}.
accounts(Trust) ->
    Now = erlang:system_time(second),
    maps:map(
        fun(_, Account = #{expires := Expires}) ->
            (maps:with([name, tags, issuer, jwt, revocations], Account))#{
                expired => Expires =/= 0 andalso Now > Expires
            }
        end,
        Trust
    ).

%% -------------------------------------------------------------------------------------------
%% Login

%% nats-server does not tell the client the reason, so the reason is only for the log. In `Facts',
%% `now' is in milliseconds of Unix time, and `offset' is the seconds that the local clock is ahead
%% of UTC.
-spec login(Jwt :: binary(), Signature :: undefined | binary(), {trust(), nats_gateway_login:facts()}) ->
    {ok, limits()} | {error, reason()}.
login(Jwt, Signature, {Trust, Facts}) ->
    try
        {IsBearer, Limits} = check(token(Jwt), Signature, Trust, Facts),
        {ok, maps:merge(Limits, maps:from_list([{jwt, Jwt} || not IsBearer]))}
    catch
        throw:{refused, Reason} -> {error, Reason}
    end.

-spec refuse(reason()) -> no_return().
refuse(Reason) -> throw({refused, Reason}).

require(true, _) -> ok;
require(false, Reason) -> refuse(Reason).

token(Jwt) ->
    case nats_gateway_nif:jwt_decode(Jwt) of
        {ok, Token = #{kind := user}} -> Token;
        {ok, _} -> refuse(not_a_user_jwt);
        {error, Text} -> refuse({bad_jwt, Text})
    end.

check(Token, Signature, Trust, Facts = #{now := Now, peerhost := PeerHost}) ->
    #{subject := User, name := Name, issued_at := IssuedAt, issuer := Issuer} = Token,
    ok = in_time(Token, Now, jwt_expired, jwt_not_yet_valid),
    AccountKey = account_key(Token),
    Account = account_of(AccountKey, Trust),
    Limits = limits(Token, AccountKey, Account),
    ok = in_time(Account, Now, account_jwt_expired, account_jwt_not_yet_valid),
    #{bearer_token := Bearer, src := Src, times := Times, times_location := Location} = Limits,
    require(not (Bearer andalso maps:get(disallow_bearer, Account)), bearer_not_allowed),
    require(is_connection_type_allowed(Limits, Facts), connection_type_not_allowed),
    require(Bearer orelse is_signed(User, Signature, Facts), bad_signature),
    require(not is_revoked(User, IssuedAt, Account), jwt_revoked),
    Address = list_to_binary(inet:ntoa(PeerHost)),
    require(nats_gateway_nif:jwt_source_allowed(Src, Address), source_not_allowed),
    #{offset := Offset} = Facts,
    Hours = nats_gateway_nif:jwt_hours(Times, Location, Offset, Now),
    require(Hours =/= closed, outside_of_hours),
    #{subs := Subs, payload := Payload} = Limits,
    #{subs := AccountSubs, payload := AccountPayload, name := AccountName} = Account,
    #{connections := Connections} = Account,
    #{claims := #{tags := Tags}} = Token,
    {Bearer, #{
        username => User,
        nkey => User,
        name => Name,
        account => AccountKey,
        account_name => AccountName,
        issuer_key => Issuer,
        tags => Tags,
        rules => rules(maps:get(permissions, Limits), outer_permissions(Token), Account),
        max_payload => min(limit(Payload), limit(AccountPayload)),
        max_subscriptions => min(limit(Subs), limit(AccountSubs)),
        max_account_connections => limit(Connections),
        zero_claims => [
            Claim
         || {Claim, 0} <- [
                {<<"nats.limits.conn of the account">>, Connections},
                {<<"nats.limits.subs of the account">>, AccountSubs},
                {subs_claim(Token, Account), Subs}
            ]
        ],
        expires => expires(Token, Hours, Account, Now)
    }}.

in_time(#{expires := Expires, not_before := NotBefore}, Now, Expired, NotYet) ->
    Seconds = Now div 1000,
    require(Expires =:= 0 orelse Seconds =< Expires, Expired),
    require(NotBefore =< 0 orelse NotBefore =< Seconds, NotYet).

account_key(#{issuer := Issuer, claims := #{issuer_account := <<>>}}) -> Issuer;
account_key(#{claims := #{issuer_account := Account}}) -> Account.

account_of(Key, Trust) ->
    case Trust of
        #{Key := Account} -> Account;
        #{} -> refuse(unknown_account)
    end.

%% The account's JWT says what a scoped signing key allows. The user's JWT must not say anything
%% about it.
limits(Token = #{issuer := Issuer, claims := Claims}, AccountKey, #{issuers := Issuers} = Account) ->
    case Issuers of
        #{Issuer := undefined} ->
            maps:get(limits, Claims);
        #{Issuer := Template} ->
            require(not maps:get(has_limits, Claims), scoped_user_with_permissions),
            fill_in(Template, Token, AccountKey, Account);
        #{} ->
            refuse(unknown_issuer)
    end.

subs_claim(#{issuer := Issuer}, #{issuers := Issuers}) ->
    case Issuers of
        #{Issuer := undefined} -> <<"nats.subs of the user">>;
        #{Issuer := _} -> <<"nats.signing_keys.template.subs of the account">>
    end.

is_connection_type_allowed(#{allowed_connection_types := []}, _) ->
    true;
is_connection_type_allowed(#{allowed_connection_types := Types}, #{transport := Transport}) ->
    lists:member(connection_type(Transport), [string:uppercase(Type) || Type <- Types]).

connection_type(tcp) -> <<"STANDARD">>;
connection_type(ssl) -> <<"STANDARD">>;
connection_type(ws) -> <<"WEBSOCKET">>;
connection_type(wss) -> <<"WEBSOCKET">>.

is_signed(User, Signature, #{nonce := Nonce}) when is_binary(Signature), is_binary(Nonce) ->
    nats_gateway_nif:nkey_verify(User, Nonce, Signature);
is_signed(_, _, _) ->
    false.

is_revoked(User, IssuedAt, #{revocations := Revocations}) ->
    lists:any(
        fun(Key) -> maps:get(Key, Revocations, IssuedAt - 1) >= IssuedAt end, [User, <<"*">>]
    ).

limit(N) when N < 0 -> infinity;
limit(N) -> N.

expires(#{expires := UserExpires}, Hours, #{expires := AccountExpires}, Now) ->
    Ends = [
        {max(0, UserExpires * 1000 - Now), user_authentication_expired}
     || UserExpires =/= 0
    ] ++
        [{Hours, user_authentication_expired} || Hours =/= infinity] ++
        [
            {max(0, AccountExpires * 1000 - Now), account_authentication_expired}
         || AccountExpires =/= 0
        ],
    case Ends of
        [] -> infinity;
        _ -> lists:min(Ends)
    end.

%% -------------------------------------------------------------------------------------------
%% Permissions

%% A user without permissions of its own has the default permissions of the account.
rules(Permissions, OuterPermissions, #{default_permissions := Default}) ->
    Rules =
        case is_empty(Permissions) of
            true -> rules(Default);
            false -> rules(Permissions)
        end,
    case is_empty(OuterPermissions) of
        true -> Rules;
        false -> Rules#{outer => rules(OuterPermissions)}
    end.

outer_permissions(#{claims := #{outer_permissions := Permissions}}) -> Permissions.

is_empty(#{
    publish := #{allow := [], deny := []},
    subscribe := #{allow := [], deny := []},
    responses := undefined
}) ->
    true;
is_empty(_) ->
    false.

rules(#{publish := Publish, subscribe := Subscribe, responses := Responses}) ->
    #{
        publish => subjects(Publish),
        subscribe => subjects(Subscribe),
        allow_responses =>
            case Responses of
                undefined -> undefined;
                {Max, Nanoseconds} -> response_permission(Max, milliseconds(Nanoseconds))
            end
    }.

subjects(Subjects = #{allow := []}) -> Subjects#{allow := all};
subjects(Subjects) -> Subjects.

%% Rounds up, so that a small number does not become 0, which stands for the default.
milliseconds(Nanoseconds) when Nanoseconds > 0 -> (Nanoseconds + 999999) div 1000000;
milliseconds(Nanoseconds) -> Nanoseconds.

%% 0 stands for nats-server's default, and a negative number for no limit.
-spec response_permission(Max :: integer(), Milliseconds :: integer()) ->
    nats_gateway_permissions:responses().
response_permission(Max, Ms) ->
    #{max => limit(Max, ?DEFAULT_RESPONSES), expires => limit(Ms, ?DEFAULT_RESPONSE_MS)}.

limit(0, Default) -> Default;
limit(N, _) -> limit(N).

%% -------------------------------------------------------------------------------------------
%% Templates of scoped signing keys: subjects with tokens such as `{{name()}}'

fill_in(Template = #{permissions := Permissions}, Token, AccountKey, Account) ->
    #{publish := Publish, subscribe := Subscribe} = Permissions,
    Value = fun(Function) -> value(Function, Token, AccountKey, Account) end,
    Template#{
        permissions := Permissions#{
            publish := fill_in(Publish, Value), subscribe := fill_in(Subscribe, Value)
        }
    }.

%% An allow entry that becomes no subject allows nothing. If a deny entry becomes none, the login is
%% refused, because the entry must not be lost.
fill_in(#{allow := Allow, deny := Deny}, Value) ->
    NAllow = [Subject || Entry <- Allow, {Subject, true} <- expand(Entry, Value)],
    NDeny = [Subject || Entry <- Deny, Subject <- denied(Entry, Value)],
    case Allow =/= [] andalso NAllow =:= [] of
        true -> #{allow => [], deny => [<<">">> | NDeny]};
        false -> #{allow => NAllow, deny => NDeny}
    end.

denied(Entry, Value) ->
    {Subjects, Valid} = lists:unzip(expand(Entry, Value)),
    require(Subjects =/= [] andalso not lists:member(false, Valid), bad_template),
    Subjects.

%% One subject for each combination of the values of its tags, and whether it is valid. A blank in a
%% value does not separate a subject from a queue group.
expand(Entry, Value) ->
    case binary:match(Entry, <<"{{">>) of
        nomatch ->
            [{Entry, is_entry(Entry)}];
        _ ->
            Tokens = [values(Token, Value) || Token <- binary:split(Entry, <<".">>, [global])],
            Count = lists:foldl(fun(Values, Acc) -> length(Values) * Acc end, 1, Tokens),
            require(Count =< ?MAX_COMBINATIONS, bad_template),
            [
                {Subject, is_valid(Subject)}
             || Combination <- product(Tokens),
                Subject <- [iolist_to_binary(lists:join(<<".">>, Combination))]
            ]
    end.

values(<<"{{", Rest/binary>> = Token, Value) ->
    Size = byte_size(Rest) - 2,
    case Rest of
        <<Function:Size/binary, "}}">> -> Value(string:lowercase(Function));
        _ -> [Token]
    end;
values(Token, _) ->
    [Token].

product([]) -> [[]];
product([Values | Rest]) -> [[Value | Tail] || Value <- Values, Tail <- product(Rest)].

value(<<"name()">>, #{name := Name}, _, _) -> [Name];
value(<<"subject()">>, #{subject := Subject}, _, _) -> [Subject];
value(<<"account-name()">>, _, _, #{name := Name}) -> [Name];
value(<<"account-subject()">>, _, AccountKey, _) -> [AccountKey];
value(<<"tag(", Rest/binary>>, #{claims := #{tags := Tags}}, _, _) -> tags(Rest, Tags);
value(<<"account-tag(", Rest/binary>>, _, _, #{tags := Tags}) -> tags(Rest, Tags);
value(_, _, _, _) -> refuse(bad_template).

tags(Rest, Tags) ->
    Size = byte_size(Rest) - 1,
    case Rest of
        <<Name:Size/binary, ")">> ->
            Prefix = <<Name/binary, ":">>,
            [binary:part(Tag, byte_size(Prefix), byte_size(Tag) - byte_size(Prefix))
             || Tag <- Tags, is_prefix(Prefix, Tag)];
        _ ->
            refuse(bad_template)
    end.

is_prefix(Prefix, Text) ->
    binary:longest_common_prefix([Prefix, Text]) =:= byte_size(Prefix).

%% A subscribe entry may have a queue group.
is_entry(Entry) ->
    case binary:split(Entry, <<" ">>) of
        [Subject] -> is_valid(Subject);
        [Subject, Queue] -> is_valid(Subject) andalso is_valid(Queue)
    end.

is_valid(Subject) ->
    nats_gateway_nif:filter(Subject, <<>>) =/= invalid andalso
        binary:match(Subject, [<<" ">>, <<"\t">>, <<"\r">>, <<"\n">>, <<"\f">>]) =:= nomatch.
